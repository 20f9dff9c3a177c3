"""Recorded results of profile tiny, made again from what is tracked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from influence_lab.cli import main
from influence_lab.experiments import families, scored
from influence_lab.records import results
from influence_lab.records.keys import key
from influence_lab.records.recording import pretrain_and_record
from influence_lab.records.vectors import Vectors
from influence_ssl import GaussianNoise

SIMCLR = {("simclr", 0): 0}


@dataclass(frozen=True)
class Again:
    """What makes a record again.

    Attributes:
        result, record: the command's name for it, and the record's.
        encoders: (method, seed) of an encoder that is needed, and whose it is: SimCLR's seed.
        files: what is copied of each.
        dropped: by seed the recorded vectors that are scored again while the others are copied;
            ``None``: all are scored again.
        prepare: what else is made first.
        extra: a method of which nothing is recorded.
        tolerance: of each number; 1e-3 of it is allowed as well.
        ranks: where in the record ranks stand, of which rounding may exchange neighbours.
    """

    result: str
    record: str
    encoders: dict[tuple[str, int], int] = field(default_factory=lambda: SIMCLR)
    files: tuple[str, ...] = ("encoder.safetensors",)
    dropped: dict[int, list[str]] | None = None
    prepare: Callable[[Path], Any] = lambda root: None
    extra: str | None = None
    tolerance: float = 0.005
    ranks: str | None = None

    def make(self, root: Path) -> None:
        """Run the command on a folder of results that has what it needs and nothing else."""
        for (method, seed), source in self.encoders.items():
            tracked = results.folder_of("tiny", "simclr", source)
            place = results.folder_of("tiny", method, seed, root)
            place.mkdir(parents=True)
            for name in self.files:
                shutil.copy(tracked / name, place)
            if self.dropped is not None:
                whole = Vectors(tracked / "vectors.npz")
                part = Vectors(place / "vectors.npz", whole.origin)
                gone = self.dropped.get(seed, [])
                assert set(gone) <= set(whole.notes)
                for name in whole.notes:
                    if name not in gone:
                        part.add(name, whole[name], **whole.notes[name])
        self.prepare(root)
        where = ["--results", str(root), "--runs", str(root / "runs")]
        out = root / "figure.svg"
        assert main(["reproduce", self.result, "--profile", "tiny", *where, "--out", str(out)]) == 0


def _supervised(root: Path) -> None:
    pretrain_and_record("supervised", "tiny", 0, progress=False, runs=root / "runs", root=root)


TWO = {("simclr", 0): 0, ("simclr", 1): 1}
AGAIN = {
    "concept": Again("fig-1", "concept", tolerance=0.01),
    # A pair of scores that rounding swaps moves an image in or out.
    "embedding": Again("fig-3", "embedding", tolerance=0.02),
    "galleries": Again(
        "fig-13", "galleries", files=("encoder.safetensors", "run.json"), prepare=_supervised,
        extra="supervised", tolerance=0.02,
    ),
    # BYOL's encoder is SimCLR's of seed 1.
    "near duplicates": Again(
        "fig-12", "near-duplicates", {("simclr", 0): 0, ("byol", 0): 1}, extra="byol",
        ranks="/lower/",
    ),
    "stability": Again(
        "fig-2", "stability", TWO,
        dropped={0: [key("score", GaussianNoise(), 4)], 1: [key("score", GaussianNoise(), 0)]},
    ),
    "noise": Again("fig-10", "noise", dropped={0: [key("score", GaussianNoise(0.1, 0.5), 0)]}),
    "families": Again(
        "table-4", "families",
        dropped={
            0: [
                key(kind, families.FAMILIES["crop"].perturbation, 0)
                for kind in ("score", *scored.RIVALS)
            ]
        },
    ),
}  # fmt: skip


def leaves(record: dict[str, Any]) -> dict[str, float]:
    """All numbers of a record but those of its provenance, by where they stand."""
    found: dict[str, float] = {}

    def walk(place: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{place}/{name}", inner)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                walk(f"{place}/{number}", inner)
        elif isinstance(value, float | int):
            found[place] = float(value)

    walk("", {name: value for name, value in record.items() if name != "provenance"})
    return found
