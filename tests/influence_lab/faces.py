"""FairFace as it is published, in small: CSV files of labels and folders of JPEGs."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from influence_lab.datasets.fairface import COLUMNS, FOLDERS, VALUES


def write(
    root: Path, n: int = 60, padding: float | None = 0.25, split: str = "train", side: int = 40
) -> Path:
    """Write ``n`` faces of one split; ``padding=None`` puts the images beside the CSV.

    The first race is dark, so that a ranking by brightness is a ranking by race. Returns the
    folder of images.
    """
    rng = np.random.default_rng(0)
    folder = root if padding is None else root / FOLDERS[padding]
    (folder / split).mkdir(parents=True)
    rows = []
    for k in range(1, n + 1):
        race, gender, age = (values[k % len(values)] for values in VALUES.values())
        light = 60 if race == "Black" else 200
        blocks = rng.integers(light - 40, light + 40, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / split / f"{k}.jpg")
        rows.append((f"{split}/{k}.jpg", age, gender, race, str(k % 2 == 0)))
    with (root / f"fairface_label_{split}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return folder
