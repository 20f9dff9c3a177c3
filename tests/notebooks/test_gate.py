"""The comparison of notebooks fails when it should: it is itself put to the test."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupyter_cache import get_cache
from myst_nb.core.read import read_myst_markdown_notebook

from comparison import TRAINED
from reference import ROOT, read, write

sys.path.insert(0, str(ROOT / "book" / "_ext"))

from freshcache import CACHE

CODE = """\
import torch
from influence_ssl import ExactHessian, InfluenceScorer, Invariance
torch.manual_seed(0)
encoder = torch.nn.Linear(3, 2, bias=False).double()
step = torch.eye(3, dtype=torch.float64)
objective = Invariance(lambda x, index, draw, seed: x + 0.1 * step[index], distance="squared")
scorer = InfluenceScorer(encoder, objective, ExactHessian(0.1), progress=False)
values = scorer.score(torch.ones(3, 3, dtype=torch.float64)).values
print(values.round(6))"""
SENTENCE = """\
print(f"The {len(values)} scores add up to {values.sum():.4g}, and order {values.argsort()}.")"""
FORMULA = """\
import sympy
x = sympy.symbols("x")
sympy.diff(x**3, x)"""
GLUED = """\
from myst_nb import glue
glue("total", float(values.sum()), display=False)"""
CELLS = (CODE, SENTENCE, FORMULA, GLUED)

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)

FLAGS = ("-q", "-rf", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", "book")
COPIED = (
    "book/conftest.py",
    "book/_ext/freshcache.py",
    "tests/notebooks/comparison.py",
    "tests/notebooks/preloaded.py",
    "tests/notebooks/reference.py",
    "tests/notebooks/tracing/sitecustomize.py",
)


@pytest.fixture(scope="module")
def accepted() -> nbformat.NotebookNode:
    """A small chapter, run here, with the outputs that a reference keeps."""
    from nbclient import NotebookClient

    notebook = chapter(*CELLS)
    NotebookClient(notebook, timeout=120).execute()
    for cell, part in zip(notebook.cells, read(write(notebook)), strict=True):
        cell.outputs = part.outputs
    return notebook


def differing(
    folder: Path,
    notebooks: dict[str, nbformat.NotebookNode],
    core: Path = ROOT / "core",
    references: dict[str, str] | None = None,
) -> dict[str, list[int]]:
    """The cells of each notebook in which nbval finds another output, in one run.

    The reference of a chapter is what ``references`` has, or the notebook's own outputs.
    """
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name, notebook in notebooks.items():
        chapter = nbformat.from_dict(notebook)
        reference = (references or {}).get(name, write(chapter))
        (folder / "tests" / "notebooks" / f"{name}.txt").write_text(reference)
        (folder / "book" / f"{name}.md").write_text(jupytext.writes(chapter, fmt="md:myst"))
    (folder / "pytest.ini").write_text("[pytest]\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *FLAGS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(core), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    # A kernel that does not start is an error and no failure: each cell has to be judged.
    judged = sum(int(n) for n in re.findall(r"(\d+) (?:passed|failed)", run.stdout[-500:]))
    cells = [cell for book in notebooks.values() for cell in book.cells if cell.cell_type == "code"]
    assert judged == len(cells), run.stdout + run.stderr
    failed = re.findall(r"^FAILED book/(.+)\.md::Cell (\d+)", run.stdout, re.MULTILINE)
    # Under CI=1 pytest's summary repeats each failure's text: count the failures' own section.
    failures = run.stdout.partition("short test summary info")[0]
    said = failures.count("Cell outputs differ") + failures.count("Cell execution caused an exc")
    assert said == len(failed), run.stdout
    return {name: [int(cell) for of, cell in failed if of == name] for name in notebooks}


def edited(cell: int, old: str, new: str) -> Callable[[nbformat.NotebookNode], None]:
    """As if the chapter had been edited and its outputs kept."""

    def edit(notebook: nbformat.NotebookNode) -> None:
        assert notebook.cells[cell].source.count(old) == 1
        notebook.cells[cell].source = notebook.cells[cell].source.replace(old, new)

    return edit


def recorded(cell: int, pattern: str, new: Callable[[str], str]) -> Callable[..., None]:
    """As if the accepted output had had something else in the place of the first match."""

    def edit(notebook: nbformat.NotebookNode) -> None:
        (output,) = notebook.cells[cell].outputs
        part, key = (output, "text") if "text" in output else (output.data, next(iter(output.data)))
        assert len(re.findall(pattern, part[key])) >= 1, part[key]
        part[key] = re.sub(pattern, lambda match: new(match.group()), part[key], count=1)

    return edit


def times(factor: float, digits: str) -> Callable[[str], str]:
    return lambda number: f"{factor * float(number):{digits}}"


def trained(cell: int, edit: Callable[[nbformat.NotebookNode], None]) -> Callable[..., None]:
    """The edit in a cell that shows the outcome of a training."""

    def tag_and_edit(notebook: nbformat.NotebookNode) -> None:
        notebook.cells[cell].metadata["tags"] = [TRAINED]
        edit(notebook)

    return tag_and_edit


FLOAT = r"-\d+\.\d+"
SEEN = {
    "a printed number by 1 per cent": (0, recorded(0, FLOAT, times(1.01, ".6f"))),
    "a number in a sentence by 1 per cent": (1, recorded(1, FLOAT, times(1.01, ".4g"))),
    "a formula": (2, edited(2, "x**3", "x**4")),
    "a glued number by 1 per cent": (3, recorded(3, FLOAT, times(1.01, ""))),
    "an output that is missing": (0, edited(0, "print(values.round(6))", "values.round(6);")),
    "a whole number": (1, recorded(1, r"The 3", lambda _: "The 4")),
    "an output that was not there": (2, edited(2, "sympy.diff", "print(1); sympy.diff")),
    "another quantity": (3, edited(3, "values.sum()", "values.max()")),
    "a word beside a training's numbers": (
        1,
        trained(1, recorded(1, "scores", lambda _: "results")),
    ),
}
NOT_SEEN = {
    "the last digits of a printed number": (0, recorded(0, FLOAT, times(1.0005, ".6f"))),
    "the last digits in a sentence": (1, recorded(1, FLOAT, times(1.0005, ".4g"))),
    "the last digits of a glued number": (3, recorded(3, FLOAT, times(1.0005, ""))),
    "what a training came to": (0, trained(0, recorded(0, FLOAT, times(1.5, ".6f")))),
}


def chapter(*sources: str) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})


# Chapters of which something else has changed than one cell, and their reference.
TWO = ">>> print(1)\nstdout: 1\n>>> print(2)\nstdout: 2\n"
CHAPTERS = {
    "same": chapter("print(1)", "print(2)"),
    "first gone": chapter("print(2)"),
    "last gone": chapter("print(1)"),
    "first new": chapter("x = 0", "print(1)", "print(2)"),
    "last new": chapter("print(1)", "print(2)", "x = 0"),
    "raises": chapter("print(1)", "print(2); 1 / 0"),
}
REFERENCES = dict.fromkeys(CHAPTERS, TWO) | {
    "raises": TWO.replace(">>> print(2)", ">>> print(2); 1 / 0")
}
# A chapter with a picture between two prints, a cell that is meant to fail, and a hidden value.
GIVEN = f"from IPython.display import Image, display; PNG = {PNG!r}"
SHOWN = "print(1); display(Image(data=PNG)); print(2)"
CHAPTERS["page"] = chapter(GIVEN, SHOWN, "1 / 0", "6 * 7", "6 * 8;")
CHAPTERS["page"].cells[2].metadata["tags"] = ["raises-exception"]
REFERENCES["page"] = (
    f">>> {GIVEN}\n>>> {SHOWN}\nstdout:\n    1\n    2\n"
    ">>> 1 / 0\nerror: ZeroDivisionError\n>>> 6 * 7\ntext/plain: 42\n>>> 6 * 8;\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def found(accepted: nbformat.NotebookNode, folder: Path) -> dict[str, list[int]]:
    """The cells in which nbval says that the chapters differ, all from one run.

    In ``edits`` the accepted chapter's cells come first, then the one cell of each edit.
    """
    edits = nbformat.from_dict(accepted)
    for cell, edit in (SEEN | NOT_SEEN).values():
        copied = nbformat.from_dict(accepted)
        edit(copied)
        edits.cells.append(copied.cells[cell])
    return differing(folder, {"edits": edits, **CHAPTERS}, references=REFERENCES)


@pytest.mark.parametrize("what", SEEN)
def test_a_change_is_seen(found: dict[str, list[int]], what: str) -> None:
    assert len(CELLS) + list(SEEN).index(what) in found["edits"]


@pytest.mark.parametrize("what", NOT_SEEN)
def test_what_another_processor_gives_is_no_change(found: dict[str, list[int]], what: str) -> None:
    assert len(CELLS) + len(SEEN) + list(NOT_SEEN).index(what) not in found["edits"]


def test_what_stayed_is_no_change(found: dict[str, list[int]]) -> None:
    assert not {*range(len(CELLS))} & {*found["edits"]}


def test_another_number_of_cells_is_seen(found: dict[str, list[int]]) -> None:
    assert {name: found[name] for name in CHAPTERS} == {
        "same": [],
        "first gone": [0],
        "last gone": [0],
        "first new": [0, 1, 2],
        "last new": [2],
        "raises": [1],
        "page": [],
    }


def test_only_whole_runs_are_kept(found: dict[str, list[int]], folder: Path) -> None:
    records = get_cache(str(folder / CACHE)).list_cache_records()
    assert {Path(record.uri).stem for record in records} == {"edits", *CHAPTERS} - {"raises"}


def test_the_book_gets_what_nbval_ran(found: dict[str, list[int]], folder: Path) -> None:
    """Outputs in their order, pictures and all, under the chapter as myst_nb reads it."""
    page = (folder / "book" / "page.md").read_text()
    cache = get_cache(str(folder / CACHE))
    _, notebook = cache.merge_match_into_notebook(read_myst_markdown_notebook(page))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [[output.output_type for output in cell.outputs] for cell in cells] == [
        [],
        ["stream", "display_data", "stream"],
        ["error"],
        ["execute_result"],
        [],
    ]
    assert cells[1].outputs[1].data["image/png"].strip() == base64.b64encode(PNG).decode()
    assert notebook.metadata["language_info"]["pygments_lexer"] == "ipython3"


def test_an_error_in_the_core_is_seen(accepted: nbformat.NotebookNode, tmp_path: Path) -> None:
    broken = tmp_path / "core"
    shutil.copytree(ROOT / "core" / "influence_ssl", broken / "influence_ssl")
    with (broken / "influence_ssl" / "scorer.py").open("a") as module:
        module.write(
            "\n_score = InfluenceScorer.score\n"
            "def _larger(self, *args, **kwargs):\n"
            "    scores = _score(self, *args, **kwargs)\n"
            "    scores.values[:] = 1.01 * scores.values\n"
            "    return scores\n"
            "InfluenceScorer.score = _larger\n"
        )
    seen = differing(tmp_path, {"chapter": accepted}, core=broken)
    assert seen == {"chapter": [0, 1, 3]}
