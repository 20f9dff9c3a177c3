"""No import runs upwards, and there is no circle."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from imports import DRAWING, PAGE, ROOT, drawing, imports, package, wrong


def test_no_import_runs_upwards() -> None:
    assert wrong(imports()) == []


def test_there_is_no_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_command_is_imported_by_nothing_and_the_report_by_the_command_alone() -> None:
    for name, others in imports().items():
        for other in others:
            if (kind := package(other)) == package(name):
                continue
            if kind == "influence_ssl.command":
                # The how-to chapters run lines of shell without a process for each.
                assert name in ("influence_ssl.__main__", "influence_lab.practice")
            if kind == "influence_ssl.report":
                assert package(name) == "influence_ssl.command"


def test_the_method_knows_files_as_what_it_writes_alone() -> None:
    for name, others in imports().items():
        if package(name) == "influence_ssl.method":
            known = {other for other in others if package(other) == "influence_ssl.files"}
            assert known <= {"influence_ssl.files.tables", "influence_ssl.files.writing"}, name


def changed(core: Path, place: str, line: str) -> Path:
    """A copy of the packages with one more line in a module."""
    for path in (ROOT / "core").rglob("*.py"):
        copy = core / path.relative_to(ROOT / "core")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    with (core / place).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    return core


@pytest.mark.parametrize(
    ("place", "line", "said"),
    [
        ("influence_ssl/scores.py", "import influence_ssl.report.html", "stands above"),
        ("influence_ssl/curvature.py", "def f():\n    import influence_lab.cli", "stands above"),
        ("influence_ssl/curvature.py", 'import_module("influence_ssl.report.html")', "above"),
        ("influence_lab/figures.py", "from influence_ssl import _passes", "is private"),
        ("influence_ssl/errors.py", "from influence_ssl.files import writing", "stands above"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, place: str, line: str, said: str) -> None:
    found = wrong(imports(changed(tmp_path, place, line)))
    assert len(found) == 1
    assert said in found[0]


def test_a_circle_is_found(tmp_path: Path) -> None:
    core = changed(tmp_path, "influence_ssl/curvature.py", "import influence_ssl.scorer")
    assert wrong(imports(core)) == []
    with pytest.raises(CycleError, match=r"influence_ssl\.curvature"):
        TopologicalSorter(imports(core)).prepare()


def test_the_drawing_is_current() -> None:
    page = PAGE.read_text("utf-8")
    assert DRAWING.findall(page) == [drawing(imports())], "run python tests/imports.py"


def test_the_way_of_one_image_is_in_the_code() -> None:
    """Each step of CONTRIBUTING names a file and a function or class that is there."""
    (block,) = re.findall(
        r"^## One image.*?^```text\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S
    )
    steps = block.splitlines()
    assert 8 <= len(steps) < 15
    for step in steps:
        file, called = step.split(maxsplit=1)
        names = re.match(r"[\w.]+(?=\()", called)
        assert names is not None, step
        source = (ROOT / "core" / "influence_ssl" / file).read_text("utf-8")
        for name in names[0].split("."):
            assert re.search(rf"(def|class) {name}\b", source), step
