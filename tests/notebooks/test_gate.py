"""The comparison of notebooks fails when it should: it is itself put to the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

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
FORMULA = """\
import sympy
x = sympy.symbols("x")
sympy.diff(x**3, x)"""
GLUED = """\
from myst_nb import glue
glue("total", float(values.sum()), display=False)"""

FLAGS = ("-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env")


@pytest.fixture(scope="module")
def accepted() -> nbformat.NotebookNode:
    """A small chapter, run here and slimmed as the references are."""
    from nbclient import NotebookClient

    cells = [nbformat.v4.new_code_cell(source) for source in (CODE, FORMULA, GLUED)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    return slim(NotebookClient(notebook, timeout=120).execute())


def outcome(folder: Path, notebook: nbformat.NotebookNode, core: Path = ROOT / "core") -> int:
    """The exit status of nbval on the notebook: 0 agrees, 1 differs."""
    shutil.copy(FOLDER / "conftest.py", folder)
    nbformat.write(notebook, folder / "chapter.ipynb")
    (folder / "pytest.ini").write_text("[pytest]\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *FLAGS, "chapter.ipynb"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(core), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    return run.returncode


def edited(notebook: nbformat.NotebookNode, old: str, new: str) -> nbformat.NotebookNode:
    """The notebook as if its chapter had been edited and its outputs kept."""
    copy = nbformat.from_dict(notebook)
    places = [cell for cell in copy.cells if old in cell.source]
    assert len(places) == 1
    places[0].source = places[0].source.replace(old, new)
    return copy


def test_an_unchanged_chapter_agrees(accepted: nbformat.NotebookNode, tmp_path: Path) -> None:
    assert all(cell.outputs for cell in accepted.cells)
    assert outcome(tmp_path, accepted) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("0.1 * step", "0.11 * step", id="number"),
        pytest.param("x**3", "x**4", id="formula"),
        pytest.param("float(values.sum())", "float(values.max())", id="number in prose"),
    ],
)
def test_a_change_in_the_chapter_is_seen(
    accepted: nbformat.NotebookNode, tmp_path: Path, old: str, new: str
) -> None:
    assert outcome(tmp_path, edited(accepted, old, new)) == 1


def test_an_error_in_the_core_is_seen(accepted: nbformat.NotebookNode, tmp_path: Path) -> None:
    broken = tmp_path / "core"
    shutil.copytree(ROOT / "core" / "influence_ssl", broken / "influence_ssl")
    with (broken / "influence_ssl" / "scorer.py").open("a") as module:
        module.write(
            "\n_score = InfluenceScorer.score\n"
            "def _doubled(self, *args, **kwargs):\n"
            "    scores = _score(self, *args, **kwargs)\n"
            "    scores.values[:] = 2 * scores.values\n"
            "    return scores\n"
            "InfluenceScorer.score = _doubled\n"
        )
    assert outcome(tmp_path, accepted, core=broken) == 1
