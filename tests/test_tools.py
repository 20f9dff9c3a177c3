"""Checks before a commit are those of ``make lint``; workflows may do what they must, no more."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_hooks_run_what_make_lint_runs() -> None:
    hooks = [
        hook
        for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repository["hooks"]
    ]
    recipe = re.search(
        r"^_build/stamps/lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert recipe is not None
    commands = [line.strip() for line in recipe[1].splitlines() if line.startswith("\t.venv/bin/")]
    assert [hook["entry"] for hook in hooks] == commands
    # A program of .venv has the lock's version; any other language would install its own.
    assert all(hook["language"] == "system" for hook in hooks)
    locked = re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    programs = {command.split()[0].removeprefix(".venv/bin/") for command in commands}
    assert programs <= set(locked)
    assert all(hook["pass_filenames"] is False for hook in hooks)


@pytest.mark.parametrize(
    ("seconds", "processes", "chosen"),
    [
        # In the order of what they took with their file's set-up: new, a, c, b, d.
        ("0.5", (), {"test_new"}),
        ("1", (), {"test_new", "test_a"}),
        ("4", (), {"test_new", "test_a", "test_c"}),
        ("6", (), {"test_new", "test_a", "test_c", "test_b"}),
        ("3", ("-n", "2"), {"test_new", "test_a", "test_c", "test_b"}),
        ("99", (), {"test_new", "test_a", "test_c", "test_b", "test_d"}),
    ],
)
def test_the_quickest_tests_that_fit_are_run(
    tmp_path: Path, seconds: str, processes: tuple[str, ...], chosen: set[str]
) -> None:
    took = {
        "test_one.py::test_a": {"setup": 0.0, "call": 1.0, "teardown": 0.0},
        "test_one.py::test_b": {"call": 2.0},
        "test_two.py::test_c": {"setup": 0.6, "call": 0.5, "teardown": 0.2},
        "test_two.py::test_d": {"setup": 0.0, "call": 9.0},
    }
    passed, noted = with_durations(tmp_path, took, "--within", seconds, *processes)
    assert set(passed) == chosen
    assert {name.split("::")[1] for name in noted} >= {"test_a", "test_b", "test_c", "test_d"}
    assert "test_new" not in chosen or noted["test_one.py::test_new"]["call"] < 1


@pytest.mark.parametrize(
    ("took", "order"),
    [
        ({"test_one.py::test_a": {"call": 1.0}, "test_two.py::test_d": {"call": 2.0}}, "cdabn"),
        ({}, "abncd"),  # the file with more tests
    ],
)
def test_the_longest_files_come_first(tmp_path: Path, took: Any, order: str) -> None:
    options = ("-n", "1", "--dist", "loadfile", "--no-loadscope-reorder")
    passed, _ = with_durations(tmp_path, took, *options)
    assert "".join(name.removeprefix("test_")[0] for name in passed) == order


def with_durations(folder: Path, took: Any, *options: str) -> tuple[list[str], Any]:
    """The tests that passed in two files, whose tests took so long before; and what is noted."""
    for name in ("conftest.py", "durations.py", "shapes.py"):
        shutil.copy(ROOT / "tests" / name, folder)
    (folder / "pytest.ini").write_text("[pytest]\n")
    tests = {"one": ("a", "b", "new"), "two": ("c", "d")}
    for file, names in tests.items():
        code = "\n".join(f"def test_{name}(): pass" for name in names)
        (folder / f"test_{file}.py").write_text(code)
    durations = folder / ".pytest_cache" / "v" / "durations"
    durations.parent.mkdir(parents=True)
    durations.write_text(json.dumps(took))
    # Of all plugins that are installed, and slow to import, the one that is used.
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", *options],
        cwd=folder,
        env={**os.environ, **plugins},
        capture_output=True,
        text=True,
        check=True,
    )
    # With several processes the outcome stands before the name.
    passed = re.findall(r"^(?:\S+::(test_\w+) PASSED|.*PASSED.*::(test_\w+))", run.stdout, re.M)
    return ["".join(names) for names in passed], json.loads(durations.read_text())


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_pinned_actions_and_may_only_read(path: Path) -> None:
    flow = yaml.safe_load(path.read_text())
    assert flow["permissions"] == {"contents": "read"}
    for name, job in flow["jobs"].items():
        # Only what publishes may do more, and it runs none of our code.
        assert name == "publish" or "permissions" not in job
        if name == "publish":
            assert all("run" not in step for step in job["steps"])
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])


def test_a_release_is_tried_on_every_python_that_the_package_names() -> None:
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    named = re.findall(
        r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text()
    )
    assert flow["jobs"]["try"]["strategy"]["matrix"]["python"] == named


def test_a_tag_of_another_version_is_refused_before_anything_is_built() -> None:
    done = subprocess.run(
        [ROOT / ".ci" / "release", "v9.9.9"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.fullmatch(r"The tag v9\.9\.9 does not name the version .*\n", done.stderr)
