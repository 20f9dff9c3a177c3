"""The reference notebooks are those of the chapters as they stand, and were really run."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest

from comparison import KINDS
from reference import FOLDER, ROOT, chapters, reference_path

CHAPTERS = {str(path.relative_to(ROOT / "book")): path for path in chapters()}


def test_every_chapter_has_one_reference_and_no_other_stands_there() -> None:
    expected = {reference_path(path) for path in CHAPTERS.values()}
    assert set(FOLDER.rglob("*.ipynb")) == expected, "run make notebooks"


@pytest.mark.parametrize("name", CHAPTERS)
def test_reference_holds_the_chapters_cells(name: str) -> None:
    chapter = [c for c in jupytext.read(CHAPTERS[name]).cells if c.cell_type == "code"]
    reference = nbformat.read(reference_path(CHAPTERS[name]), as_version=4).cells
    assert [c.source for c in reference] == [c.source for c in chapter], "run make notebooks"
    assert [c.metadata.get("tags", []) for c in reference] == [
        c.metadata.get("tags", []) for c in chapter
    ]
    assert chapter, f"{name} has a kernel and no code"


@pytest.mark.parametrize("name", CHAPTERS)
def test_reference_was_run_and_is_small(name: str) -> None:
    path: Path = reference_path(CHAPTERS[name])
    for cell in nbformat.read(path, as_version=4).cells:
        assert cell.execution_count, f"never run: {cell.source[:60]!r}"
        for output in cell.outputs:
            assert set(output.get("data", {})) <= set(KINDS)
            assert output.get("name") != "stderr"
    assert path.stat().st_size < 60_000
