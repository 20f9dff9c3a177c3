"""The comparison of notebooks fails when it should: it is itself put to the test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from comparison import TRAINED
from reference import FOLDER, ROOT, slim

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

FLAGS = ("-q", "-rf", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env")


@pytest.fixture(scope="module")
def accepted() -> nbformat.NotebookNode:
    """A small chapter, run here and slimmed as the references are."""
    from nbclient import NotebookClient

    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    return slim(NotebookClient(notebook, timeout=120).execute())


def differing(
    folder: Path, notebooks: dict[str, nbformat.NotebookNode], core: Path = ROOT / "core"
) -> dict[str, list[int]]:
    """The cells of each notebook in which nbval finds another output, in one run."""
    shutil.copy(FOLDER / "conftest.py", folder)
    shutil.copy(FOLDER / "comparison.py", folder)
    for name, notebook in notebooks.items():
        nbformat.write(notebook, folder / f"{name}.ipynb")
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
    failed = re.findall(r"^FAILED (.+)\.ipynb::Cell (\d+)", run.stdout, re.MULTILINE)
    # Under CI=1 pytest's summary repeats each failure's text: count the failures' own section.
    failures = run.stdout.partition("short test summary info")[0]
    assert failures.count("Cell outputs differ") == len(failed), run.stdout
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
# By cell, so that one run of a chapter tells four of them.
SEEN = {
    "numbers": {
        "a printed number by 1 per cent": (0, recorded(0, FLOAT, times(1.01, ".6f"))),
        "a number in a sentence by 1 per cent": (1, recorded(1, FLOAT, times(1.01, ".4g"))),
        "a formula": (2, edited(2, "x**3", "x**4")),
        "a glued number by 1 per cent": (3, recorded(3, FLOAT, times(1.01, ""))),
    },
    "outputs": {
        "an output that is missing": (0, edited(0, "print(values.round(6))", "values.round(6);")),
        "a whole number": (1, recorded(1, r"The 3", lambda _: "The 4")),
        "an output that was not there": (2, edited(2, "sympy.diff", "print(1); sympy.diff")),
        "another quantity": (3, edited(3, "values.sum()", "values.max()")),
    },
    "trainings": {
        "a word beside a training's numbers": (
            1,
            trained(1, recorded(1, "scores", lambda _: "results")),
        ),
    },
}
NOT_SEEN = {
    "digits": {
        "the last digits of a printed number": (0, recorded(0, FLOAT, times(1.0005, ".6f"))),
        "the last digits in a sentence": (1, recorded(1, FLOAT, times(1.0005, ".4g"))),
        "the last digits of a glued number": (3, recorded(3, FLOAT, times(1.0005, ""))),
    },
    "outcomes": {
        "what a training came to": (0, trained(0, recorded(0, FLOAT, times(1.5, ".6f")))),
    },
}


@pytest.fixture(scope="module")
def found(accepted: nbformat.NotebookNode, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The cells in which nbval says that the chapters differ."""
    chapters = {}
    for name, edits in (SEEN | NOT_SEEN).items():
        chapters[name] = nbformat.from_dict(accepted)
        for _, edit in edits.values():
            edit(chapters[name])
    return differing(tmp_path_factory.mktemp("chapters"), chapters)


@pytest.mark.parametrize(("chapter", "what"), [(c, what) for c in SEEN for what in SEEN[c]])
def test_a_change_is_seen(found: dict[str, list[int]], chapter: str, what: str) -> None:
    cell, _ = SEEN[chapter][what]
    assert cell in found[chapter]


@pytest.mark.parametrize("chapter", NOT_SEEN)
def test_what_another_processor_gives_is_no_change(
    found: dict[str, list[int]], chapter: str
) -> None:
    assert found[chapter] == []


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
