"""What the how-to chapters share: the folder of scenes, and lines of shell."""

import ast
import csv
from pathlib import Path

import jupytext
import numpy as np
import pytest
from PIL import Image

from influence_lab.datasets import make_scenes
from influence_lab.practice import shell, write_scenes
from influence_ssl import InfluenceError


def test_the_folder_holds_the_scenes_and_their_truth(tmp_path: Path) -> None:
    scenes = make_scenes(40, seed=3)
    table = write_scenes(scenes, tmp_path / "photos")
    assert table == tmp_path / "photos.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{name}.png" for name in scenes.images.names]
    for i, row in enumerate(rows):
        with Image.open(tmp_path / "photos" / row["path"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), scenes.images.images[i])
    assert [row["light"] == "night" for row in rows] == (scenes.group == 1).tolist()
    assert [row["kind"] == "outlier" for row in rows] == scenes.is_kind("outlier").tolist()
    assert [row["class"] for row in rows] == [
        scenes.images.classes[k] for k in scenes.images.labels
    ]


def test_a_line_that_fails_stops_the_chapter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InfluenceError, match="ended with code 2"):
        shell("influence-ssl compare nothing.npz \\\n    nowhere.npz")
    assert "nothing.npz" in capsys.readouterr().err
    with pytest.raises(InfluenceError, match="not 'rm'"):
        shell("rm photos")


def test_parts_of_ones_own_take_ten_lines() -> None:
    chapter = jupytext.read(Path(__file__).parents[2] / "book" / "practice" / "extend.md")
    lines = {}
    for cell in chapter.cells:
        if cell.cell_type == "code":
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    source = ast.get_source_segment(cell.source, node) or ""
                    lines[node.name] = sum(bool(line.strip()) for line in source.splitlines())
    assert all(lines[name] <= 10 for name in ("erase", "Assignment", "Diagonal")), lines
