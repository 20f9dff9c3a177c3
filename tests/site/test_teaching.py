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


# A role, an empty link, a label, a fence or an option: what Jupyter would show as it is.
RAW = re.compile(r"\{[\w:]+\}`|\[\]\(|(?<![\w-])(?:eq|fig|ex|sol)-[a-z]|^[:`]{3}|^:\w+:", re.M)


def words(name: str) -> str:
    cells = nbformat.read(FOLDER / notebook(name), as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("name", CHAPTERS)
def test_references_read_as_on_the_page(name: str) -> None:
    text, page = words(name), (SITE / f"{name}.html").read_text("utf-8")
    assert not RAW.findall(text)
    equations = re.findall(r'<span class="eqno">\((\d+)\)', page)
    assert re.findall(r"\\tag\{(\d+)\}", text) == equations
    exercises = re.findall(r'class="caption-number">(Exercise \d+)', page)
    assert re.findall(r"^\*\*(Exercise \d+)", text, re.M) == exercises


def test_raw_text_is_told_from_ordinary() -> None:
    for raw in ("{eq}`eq-x`", "see [](a.md)", "in eq-loo", ":::{note}", ":class: tip", "```"):
        assert RAW.search(raw), raw
    for ordinary in (
        "[text](https://a.org)",
        "a reg-ex at sub-ex-amples",
        "`x` is $a:b$",
        "**a: b**",
    ):
        assert not RAW.search(ordinary), ordinary


def test_routes_add_up_and_keep_to_their_weeks() -> None:
    source = SOURCES["book/teaching"]
    page = (SITE / "book" / "teaching.html").read_text("utf-8")
    routes = re.findall(r"^```\{route\}\n(.*?)^```$", source, re.M | re.S)
    sums = []
    for route in routes:
        low, high = map(int, re.search(r":minutes: (\d+)-(\d+)", route).groups())
        names = [line for line in route.splitlines() if line.startswith("book/")]
        assert set(names) <= set(DOCUMENTS), "a route names single chapters"
        stated = [
            re.search(r"\*\*Time:?\*\*:? (?:about )?(\d+) minutes", SOURCES[n]) for n in names
        ]
        sums.append(sum(int(found[1]) for found in stated))
        assert low <= sums[-1] <= high
    assert sums == [int(n) for n in re.findall(r"Together (\d+) minutes", page)]
    weeks = sums[-source.count("### Week") :]
    assert max(weeks) <= 1.25 * min(weeks), "the weeks are of about the same length"
