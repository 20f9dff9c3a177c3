"""A score file with planted truth, and the report made of it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
from PIL import Image

from influence_ssl import Scores
from influence_ssl.report.html import write

N = 300


def scored(n: int = N, names: list[str] | None = None) -> pandas.DataFrame:
    """A score file's columns: groups {0, 1} and {2, 3, 4}; image 7 is on top and alone."""
    rng = np.random.default_rng(0)
    magnitude = np.exp(rng.normal(size=n))
    magnitude[7] = 1000.0
    scores = Scores(-magnitude, np.full(n, np.nan), np.arange(n))
    names = names or [f"{'ab'[i % 2]}/{i:05}.png" for i in range(n)]
    table = scores.to_pandas()
    table.insert(1, "name", names)
    table.insert(2, "sha256", [f"{i:064x}" for i in range(n)])
    table.loc[1, "sha256"] = table.loc[0, "sha256"]
    order = scores.order("highest")
    table.loc[order, "rank"] = np.arange(1, n + 1)
    table["rank"] = table["rank"].astype(int)
    table["percentile"] = 100 * (n - table["rank"]) / (n - 1)
    table["loss"] = magnitude + rng.normal(size=n)
    table["gradient_norm"] = np.sqrt(magnitude)
    table["nearest"] = [names[(i + 1) % n] for i in range(n)]
    table["similarity"] = 0.5 + 0.4 * rng.random(n)
    table.loc[7, "similarity"] = 0.1
    table["duplicate_group"] = pandas.array([None] * n, dtype="Int64")
    for group, members in enumerate(((0, 1), (2, 3, 4)), 1):
        for a, b in zip(members, (*members[1:], members[0]), strict=True):
            table.loc[a, ["nearest", "similarity", "duplicate_group"]] = [names[b], 0.99, group]
    return table


def save(table: pandas.DataFrame, path: Path, provenance: dict[str, Any] | None = None) -> Path:
    found = json.dumps({"draws": 1, "seed": 0} if provenance is None else provenance)
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            file.write(f"# provenance: {found}\n")
            table.to_csv(file, index=False)
    else:
        arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
        metadata = {**arrow.schema.metadata, b"provenance": found}
        pyarrow.parquet.write_table(arrow.replace_schema_metadata(metadata), path)
    return path


def digests(folder: Path, names: Iterable[str]) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


def make(folder: Path) -> None:
    """Scores, images (0 and 1 the same, 3 and 4 crops of 2), labels and the report of them."""
    table, rng = scored(), np.random.default_rng(1)
    # Smooth pictures: a crop of one keeps its likeness.
    pictures = [
        Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((80, 80), 3)
        for _ in range(N)
    ]
    pictures[1] = pictures[0]
    pictures[3] = pictures[2].crop((2, 2, 74, 74)).resize((80, 80))
    pictures[4] = pictures[2].crop((8, 8, 80, 80)).resize((80, 80))
    for name, picture in zip(table["name"], pictures, strict=True):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    (folder / "images" / table["name"][7]).write_bytes(b"no image")
    table["sha256"] = digests(folder / "images", table["name"])
    pandas.DataFrame(
        {
            "path": [f"./{name}" for name in table["name"]],
            # 20 of the top 30 carry the label, and 30 of the other 270.
            "group <b>": [
                "rare" if (r <= 20 or 31 <= r <= 60) else "common" for r in table["rank"]
            ],
            "camera": rng.choice(["x", "y"], N),
            "weight": rng.random(N),
            "note": [f"note {i}" for i in range(N)],
        }
    ).to_csv(folder / "labels.csv", index=False)
    save(table, folder / "scores.parquet")
    write(
        folder / "scores.parquet",
        folder / "report.html",
        folder / "images",
        folder / "labels.csv",
        folder / "report.json",
    )
