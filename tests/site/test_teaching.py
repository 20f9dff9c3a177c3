"""The exercises' notebooks: every chapter that has exercises, none of their solutions."""

from __future__ import annotations

import re

import jupytext
import nbformat
import pytest

from pages import DOCUMENTS, ROOT, SITE

SOURCES = {name: (ROOT / f"{name}.md").read_text("utf-8") for name in DOCUMENTS}
CHAPTERS = [name for name in DOCUMENTS if "{exercise}" in SOURCES[name]]
FOLDER = SITE / "exercises"


def notebook(name: str) -> str:
    return f"{name.removeprefix('book/').replace('/', '-')}.ipynb"


def test_one_notebook_for_each_chapter_with_exercises() -> None:
    assert CHAPTERS
    assert {path.name for path in FOLDER.glob("*.ipynb")} == {notebook(name) for name in CHAPTERS}


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_chapter_without_its_solutions(name: str) -> None:
    handed_out = nbformat.read(FOLDER / notebook(name), as_version=4)
    titles = re.findall(r"\{exercise\} *(\S.*)?", SOURCES[name])
    code = [cell.source for cell in handed_out.cells if cell.cell_type == "code"]
    assert code.count("# Your solution") == len(titles)

    # Independent of the pattern that cuts: a flag that flips at each gate.
    kept, inside = [], False
    for cell in jupytext.reads(SOURCES[name], fmt="md:myst").cells:
        if cell.cell_type == "code" and not inside:
            kept.append(cell.source)
        for gate in re.findall(r"\{solution-(start|end)\}", cell.source):
            inside = gate == "start"
    assert [source for source in code if source != "# Your solution"] == kept
    assert not any("solution-" in cell.source for cell in handed_out.cells)


def test_routes_state_their_sums() -> None:
    page = (SITE / "book" / "teaching.html").read_text("utf-8")
    assert len(re.findall(r"Together \d+ minutes", page)) >= 5
