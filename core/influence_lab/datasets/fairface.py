"""FairFace: faces with race, gender and age, from its CSV files and folders of images."""

from __future__ import annotations

import csv
import sys
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from influence_lab.datasets.base import Grouped, Images, data_root
from influence_lab.datasets.reading import read_all, try_rgb
from influence_ssl.errors import InfluenceOSError, InfluenceValueError

COLUMNS = ("file", "age", "gender", "race", "service_test")
VALUES = {
    "race": (
        "Black", "East Asian", "Indian", "Latino_Hispanic", "Middle Eastern", "Southeast Asian",
        "White",
    ),
    "gender": ("Female", "Male"),
    "age": (
        "0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70",
    ),
}  # fmt: skip
FOLDERS = {0.25: "fairface-img-margin025-trainval", 1.25: "fairface-img-margin125-trainval"}
SPLITS = {"train": "train", "test": "val"}
SOURCE = (
    "FairFace has no automatic download: get the labels fairface_label_train.csv and "
    "fairface_label_val.csv and the images fairface-img-margin025-trainval.zip (padding 0.25) by "
    "the links in https://github.com/joojs/fairface, and unpack the zip into a folder of its name"
)


def load_fairface(
    split: str = "train",
    size: int = 224,
    padding: float = 0.25,
    root: str | Path | None = None,
) -> Grouped:
    """FairFace's 86,744 training or 10,954 validation images (``split="test"``), with attributes.

    The folder ``fairface/`` below ``root`` (default: :func:`.base.data_root`) is searched, then
    ``root`` itself. It must contain ``fairface_label_{train,val}.csv`` with the columns
    :data:`COLUMNS`, and the files that the first column names, such as ``train/1.jpg``. These are
    in ``fairface-img-margin025-trainval/`` (``padding`` 0.25, as in the paper), in
    ``fairface-img-margin125-trainval/`` (1.25), or beside the CSV, where the padding is unknown.
    Images are converted to RGB, resized to ``size`` pixels and cached as one array. Labels are
    races, in alphabetical order.

    Missing or unreadable images are left out; a line on the terminal counts and names them. Raises
    :class:`InfluenceError` if the CSV, the folder or all images are missing, or if the CSV is not
    FairFace's.
    """
    if split not in SPLITS or padding not in FOLDERS or size < 1:
        raise InfluenceValueError(
            f"FairFace: split={split!r}, size={size}, padding={padding}: expected 'train' or "
            "'test', at least 1, and 0.25 or 1.25"
        )
    table = _find_table(SPLITS[split], data_root() if root is None else Path(root))
    folder, kind = _find_images(table, SPLITS[split], padding)
    rows = _read_table(table)
    present = [row for row in rows if (folder / row["file"]).is_file()]
    if not present:
        raise InfluenceOSError(
            f"{folder}: none of the {len(rows):,} images that {table.name} names is there "
            f"({rows[0]['file']}, …); {SOURCE}"
        )
    files = [folder / row["file"] for row in present]

    pixels, unreadable = read_all(
        f"fairface-{SPLITS[split]}-{size}", folder, files, partial(try_rgb, size=size)
    )
    lost = {name for name, _ in unreadable}
    kept = [row for row in present if row["file"] not in lost]
    if not kept:
        raise InfluenceOSError(
            f"{folder}: none of its {len(files):,} images can be read; the first: "
            f"{unreadable[0][0]}: {unreadable[0][1]}; unpack the zip again"
        )
    races = VALUES["race"]
    labels = np.array([races.index(row["race"]) for row in kept], np.int64)
    name = f"FairFace ({kind}, {size} pixels)"
    there = {row["file"] for row in present}
    found = Grouped(
        Images(name, pixels, labels, tuple(row["file"] for row in kept), races),
        {column: np.array([row[column] for row in kept]) for column in VALUES},
        tuple(row["file"] for row in rows if row["file"] not in there),
        unreadable,
    )
    if line := found.left_out():
        print(line, file=sys.stderr)
    return found


def _find_table(split: str, root: Path) -> Path:
    name = f"fairface_label_{split}.csv"
    for place in (root / "fairface", root):
        if (place / name).is_file():
            return place / name
    raise InfluenceOSError(f"no {name} in {root / 'fairface'} or {root}; {SOURCE}")


def _find_images(table: Path, split: str, padding: float) -> tuple[Path, str]:
    """The folder to which the names in the CSV are relative, and its padding if known."""
    named = table.parent / FOLDERS[padding]
    for folder in (named, named / named.name):  # the second: unpacked by a file manager
        if (folder / split).is_dir():
            return folder, f"padding {padding}"
    if (table.parent / split).is_dir():
        return table.parent, "padding not known"
    others = [name for name in FOLDERS.values() if (table.parent / name / split).is_dir()]
    there = f" (there is {others[0]}, of another padding)" if others else ""
    raise InfluenceOSError(
        f"{table.parent}: no folder {named.name}/{split} with FairFace's images{there}; {SOURCE}"
    )


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise InfluenceValueError(
                    f"{path}: its columns are {', '.join(reader.fieldnames or ['none'])} where "
                    f"FairFace has {', '.join(COLUMNS)}; download the file again"
                )
            rows = list(reader)
    except OSError as error:
        raise InfluenceOSError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InfluenceValueError(f"{path}: not a CSV ({error}); download it again") from error
    if not rows:
        raise InfluenceValueError(f"{path}: no rows; download the file again")
    for line, row in enumerate(rows, 2):
        _check_row(f"{path}, line {line}", row)
    return rows


def _check_row(where: str, row: dict[str, str]) -> None:
    for column, values in VALUES.items():
        if row[column] not in values:
            raise InfluenceValueError(
                f"{where}: {column} is {row[column]!r}, not one of {', '.join(values)}; download "
                "the file again (a spreadsheet turns 3-9 into a date)"
            )
    parts = PurePosixPath(row["file"] or "").parts
    if not parts or parts[0] not in SPLITS.values() or ".." in parts:
        raise InfluenceValueError(
            f"{where}: file is {row['file']!r}, not train/N.jpg or val/N.jpg; download the file "
            "again"
        )
