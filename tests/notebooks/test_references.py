"""The references are those of the chapters as they stand, in a form that a diff can show."""

from __future__ import annotations

import jupytext
import nbformat
import pytest

from comparison import texts
from reference import FOLDER, ROOT, chapters, code_cells, head, read, reference_path, write

CHAPTERS = {str(path.relative_to(ROOT / "book")): path for path in chapters()}


def test_every_chapter_has_one_reference_and_no_other_stands_there() -> None:
    expected = {reference_path(path) for path in CHAPTERS.values()}
    assert set(FOLDER.rglob("*.txt")) == expected, "run make notebooks"


@pytest.mark.parametrize("name", CHAPTERS)
def test_reference_has_a_part_for_each_of_the_chapters_cells(name: str) -> None:
    cells = code_cells(jupytext.read(CHAPTERS[name]))
    text = reference_path(CHAPTERS[name]).read_text("utf-8")
    parts = read(text)
    assert cells, f"{name} has a kernel and no code"
    assert [part.head for part in parts] == [head(cell) for cell in cells], "run make notebooks"
    for cell, part in zip(cells, parts, strict=True):
        assert not any(output.get("name") == "stderr" for output in part.outputs)
        cell.outputs = part.outputs
    assert write(nbformat.v4.new_notebook(cells=cells)) == text, "written by hand?"
    assert len(text) < 40_000


def test_what_is_written_is_what_is_read() -> None:
    """Every kind of output, and text that looks like a label, a cell or an indent."""
    new = nbformat.v4.new_output
    printed = [
        new("stream", name="stdout", text="  a: 1\n"),
        new("display_data", data={"image/png": "AAAA", "text/plain": "<Figure size 640x480>"}),
        new("stream", name="stdout", text="\n>>> b\n\n    c:\n"),
        new("execute_result", data={"text/plain": "3*x**2", "text/latex": "$3 x^{2}$"}),
        new(
            "display_data",
            data={"application/papermill.record/text/plain": "0.5"},
            metadata={"scrapbook": {"name": "ledger:of:all"}},
        ),
        new("error", ename="ValueError", evalue="", traceback=[]),
    ]
    cells = [
        nbformat.v4.new_code_cell("\n# first\nx = 1"),
        nbformat.v4.new_code_cell("print(x)", outputs=printed),
        nbformat.v4.new_code_cell(
            "time()", outputs=printed, metadata={"tags": ["nbval-ignore-output"]}
        ),
    ]
    parts = read(write(nbformat.v4.new_notebook(cells=cells)))
    assert [part.head for part in parts] == ["# first", "print(x)", "time()"]
    assert [len(part.outputs) for part in parts] == [0, 5, 0]
    for (kind, text), (other, expected) in zip(
        texts(parts[1].outputs), texts(printed), strict=True
    ):
        assert (kind, text.splitlines()) == (other, expected.splitlines())


def test_a_line_that_belongs_nowhere_is_named() -> None:
    for text in ("stdout: 1\n", ">>> x\n    1\n", ">>> x\nstdout\n"):
        with pytest.raises(ValueError, match=r"line \d belongs to no output"):
            read(text)
