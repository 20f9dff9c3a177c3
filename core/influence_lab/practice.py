"""Shared by the how-to chapters: a folder of pictures with known truth, and a shell."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

from PIL import Image

from influence_lab.datasets.scenes import GROUPS, KINDS, Scenes
from influence_ssl.command.main import main
from influence_ssl.errors import InfluenceError
from influence_ssl.files.writing import replacing


def write_scenes(scenes: Scenes, folder: Path) -> Path:
    """Write each scene to ``folder/NAME.png``, and its attributes to a CSV beside the folder.

    The CSV is ``folder`` with the suffix ``.csv``; its columns are path, class, light (one of
    :data:`GROUPS`) and kind (one of :data:`KINDS`). Returns its path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images, rows = scenes.images, []
    for i, name in enumerate(images.names):
        Image.fromarray(images.images[i]).save(folder / f"{name}.png")
        truth = images.classes[images.labels[i]], GROUPS[scenes.group[i]], KINDS[scenes.kind[i]]
        rows.append((f"{name}.png", *truth))
    table = folder.with_suffix(".csv")
    with (
        replacing(table, parents=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([("path", "class", "light", "kind"), *rows])
    return table


def shell(line: str) -> None:
    """Run a line that begins with ``influence-ssl`` in this process, which saves its start-up.

    The command's output is printed. Raises :class:`InfluenceError` if it fails or if the line
    begins with anything else.
    """
    program, *arguments = shlex.split(line.replace("\\\n", " "))
    if program != "influence-ssl":
        raise InfluenceError(f"shell runs influence-ssl, not {program!r}.")
    if code := main(arguments):
        raise InfluenceError(f"{line.strip()!r} ended with code {code}; its message is above.")
