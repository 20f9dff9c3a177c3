"""Setting up: which Python, which browser, and one line where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import browser
from pages import ROOT


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def choose(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(ROOT / ".ci" / "python")],
        env={"PATH": str(path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_python_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    program(tmp_path, "python3", "exit 127")
    works = program(tmp_path, "python3.12", "exit 0")
    found = choose(tmp_path)
    assert (found.returncode, found.stdout.strip()) == (0, str(works))


def test_this_python_is_taken_when_named() -> None:
    assert choose(Path("/nowhere"), PYTHON=sys.executable).stdout.strip() == sys.executable


def test_no_python_is_one_line(tmp_path: Path) -> None:
    found = choose(tmp_path)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert "3.11, 3.12 or 3.13" in found.stderr


def test_browser_that_does_not_start_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "chromium", "exit 1")
    works = program(tmp_path, "google-chrome", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(browser, "NAMES", ("chromium", "google-chrome"))
    assert browser.find() == str(works)


@pytest.mark.skipif(browser.MAC.exists(), reason="Chrome cannot be hidden on this Mac")
def test_no_browser_is_one_line_and_an_error_only_in_ci(tmp_path: Path) -> None:
    # A module of that name hides Playwright, and an empty path hides everything else.
    hidden = tmp_path / "playwright"
    hidden.mkdir()
    (hidden / "__init__.py").write_text("")
    (hidden / "sync_api.py").write_text(
        "from contextlib import contextmanager\n"
        "from types import SimpleNamespace as S\n"
        "@contextmanager\n"
        "def sync_playwright():\n"
        "    yield S(chromium=S(executable_path='/nowhere/chrome'))\n"
    )
    environment = {**os.environ, "PATH": "/nowhere", "PYTHONPATH": str(tmp_path)}
    for ci, status in (("true", 1), ("", 0)):
        run = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "site" / "browser.py")],
            env={**environment, "CI": ci},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == status
        assert browser.MISSING in run.stdout + run.stderr
