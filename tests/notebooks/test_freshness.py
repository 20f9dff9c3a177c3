"""The outputs of a chapter outlive every change but one of what they were made from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

from reference import FOLDER, ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))

from freshcache import CACHE, drop_outdated, keep

PROJECT = {
    "core/lab/__init__.py": "",
    "core/lab/measure.py": "from .parts import spread\n",
    "core/lab/parts/__init__.py": "",
    "core/lab/parts/spread.py": "def spread():\n    from lab import lazy\n",
    "core/lab/parts/packaged.safetensors": "1",
    "core/lab/lazy.py": "",
    "core/lab/by_name.py": "",
    "core/lab/child.py": "import lab.grandchild\n",
    "core/lab/grandchild.py": "",
    "core/lab/never.py": "",
    "core/lab/records.py": "import os; os.environ.get('INFLUENCE_SSL_RESULTS')\n",
    "book/facts.yml": "1",
    "book/results/cpu/run.json": "1",
    "book/results/cpu/other.json": "1",
    "book/results/cpu/encoder.safetensors": "1",
    "data/cifar10/0.jpg": "1",
    "requirements.lock": "torch==2\n",
}
CHAPTER = """
import importlib, os, subprocess, sys
from lab.measure import spread
spread.spread()
importlib.import_module("lab.by" + "_name")
subprocess.run([sys.executable, "-c", "import lab.child"], check=True)
os.chdir("../../book")
open("facts.yml").read()
open("../data/cifar10/0.jpg").read()
open("written.txt", "w").close()
"""
RECORDS = "import lab.records, pathlib; pathlib.Path('../results/cpu/run.json').read_text()"
USED = {
    "core/lab/__init__.py",
    "core/lab/measure.py",
    "core/lab/parts/__init__.py",
    "core/lab/parts/spread.py",
    "core/lab/parts/packaged.safetensors",
    "core/lab/lazy.py",
    "core/lab/by_name.py",
    "core/lab/child.py",
    "core/lab/grandchild.py",
    "book/facts.yml",
    "requirements.lock",
}
WITH_RECORDS = {
    "core/lab/__init__.py",
    "core/lab/records.py",
    "book/results/cpu/run.json",
    "book/results/cpu/encoder.safetensors",
    "requirements.lock",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose two chapters were run, twice: from sources, then from compiled files."""
    root = tmp_path_factory.mktemp("project")
    for name, text in PROJECT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    tracing = root / "tests" / "notebooks" / "tracing"
    shutil.copytree(FOLDER / "tracing", tracing)
    (root / "book" / "theory").mkdir()
    for _ in range(2):
        for page, code in (("code", CHAPTER), ("records", RECORDS)):
            trace = root / "trace"
            trace.write_text("")
            path = os.pathsep.join((str(tracing), str(root / "core")))
            environment = {**os.environ, "PYTHONPATH": path, "CHAPTER_TRACE": str(trace)}
            subprocess.run(
                [sys.executable, "-c", code],
                cwd=root / "book" / "theory",
                env=environment,
                check=True,
            )
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
            keep(root, f"book/theory/{page}.md", notebook, trace.read_text().splitlines(), 1.0)
    return root


def kept(root: Path) -> set[str]:
    """The pages whose outputs are still there, with the cache as it was afterwards."""
    whole = root / CACHE
    saved = root / "saved"
    shutil.copytree(whole, saved)
    drop_outdated(root, get_cache(str(whole)))
    pages = {Path(record.uri).stem for record in get_cache(str(whole)).list_cache_records()}
    shutil.rmtree(whole)
    saved.rename(whole)
    return pages


@pytest.mark.parametrize("name", PROJECT)
def test_a_change_drops_what_was_made_from_it_and_nothing_else(project: Path, name: str) -> None:
    path = project / name
    path.write_text(PROJECT[name] + "# changed\n")
    expected = {"code"} - ({"code"} if name in USED else set())
    expected |= {"records"} - ({"records"} if name in WITH_RECORDS else set())
    try:
        assert kept(project) == expected
        path.unlink()
        gone = expected - ({"records"} if name.startswith("book/results/") else set())
        assert kept(project) == gone
    finally:
        path.write_text(PROJECT[name])
    assert kept(project) == {"code", "records"}


def test_a_record_that_is_new_drops_who_might_read_it(project: Path) -> None:
    new = project / "book" / "results" / "paper" / "run.json"
    new.parent.mkdir()
    new.write_text("2")
    assert kept(project) == {"code"}
    shutil.rmtree(new.parent)
    assert kept(project) == {"code", "records"}


def test_a_package_that_is_installed_elsewhere_counts(tmp_path: Path) -> None:
    module = tmp_path / "site" / "influence_lab" / "elsewhere.py"
    module.parent.mkdir(parents=True)
    for file in (module, module.with_name("__init__.py")):
        file.write_text("")
    tracing = tmp_path / "project" / "tests" / "notebooks" / "tracing"
    shutil.copytree(FOLDER / "tracing", tracing)
    trace = tmp_path / "trace"
    trace.write_text("")
    path = os.pathsep.join((str(tracing), str(tmp_path / "site")))
    subprocess.run(
        [sys.executable, "-c", "import influence_lab.elsewhere"],
        env={**os.environ, "PYTHONPATH": path, "CHAPTER_TRACE": str(trace)},
        check=True,
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    project = tmp_path / "project"
    keep(project, "page.md", notebook, trace.read_text().splitlines(), 1.0)
    assert kept(project) == {"page"}
    module.write_text("x = 1")
    assert kept(project) == set()


def test_outputs_of_unknown_origin_are_dropped(tmp_path: Path) -> None:
    """As myst_nb leaves them; and as a run does that is stopped between record and file."""
    cache = get_cache(str(tmp_path / CACHE))
    one, two, three = (
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"print({i})")]) for i in range(3)
    )
    cache.cache_notebook_bundle(
        CacheBundleIn(one, str(tmp_path / "one.md"), data={"execution_seconds": 1.0}),
        check_validity=False,
    )
    keep(tmp_path, "two.md", two, (), 1.0)
    keep(tmp_path, "three.md", three, (), 1.0)
    shutil.rmtree(cache.path / "executed" / cache.match_cache_notebook(two).hashkey)
    assert kept(tmp_path) == {"three"}


def test_the_data_sets_of_every_chapter_do_not_bring_fairface_along() -> None:
    """Else a change in ``fairface.py`` would run every chapter again that has data."""
    code = "import influence_lab.datasets, sys; print([n for n in sys.modules if 'fairface' in n])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
