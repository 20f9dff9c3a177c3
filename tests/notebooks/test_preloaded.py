"""A kernel that starts with common packages finds, notes and obeys what a plain one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reference import FOLDER, ROOT

CHAPTER = """
import json, os, sys
early = [name for name in ("torch", "influence_ssl", "matplotlib.pyplot") if name in sys.modules]
import influence_ssl, matplotlib.pyplot
print(json.dumps({"early": early, "path": sys.path, "folder": os.getcwd(),
                  "asked": os.environ["ASKED"], "leads": os.getpid() == os.getsid(0),
                  "backend": matplotlib.get_backend()}))
"""
# A program of its own, because a process starts all its kernels alike.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
from jupyter_client.manager import start_new_kernel
how, chapter, folder = sys.argv[1:]
if how == "preloaded":
    import preloaded
    preloaded.install()
manager, client = start_new_kernel(cwd=folder)
hook = lambda message: print(message["content"].get("text", ""), end="")
client.execute_interactive(chapter, output_hook=hook, timeout=60)
client.stop_channels()
manager.shutdown_kernel()
print(manager.is_alive())
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, set[str]]]:
    """By how a kernel starts: what it says of itself, and which files of the core it notes."""
    return {how: _run(how, tmp_path_factory.mktemp(how)) for how in ("plain", "preloaded")}


def _run(how: str, folder: Path) -> tuple[Any, set[str]]:
    trace = folder / "trace"
    trace.touch()
    search = str(FOLDER / "tracing")
    env = {**os.environ, "ASKED": how, "PYTHONPATH": search, "CHAPTER_TRACE": str(trace)}
    del env["MPLBACKEND"]  # that of the tests
    command = [sys.executable, "-c", PROGRAM, how, CHAPTER, str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=True
    )
    said, alive = done.stdout.splitlines()
    assert alive == "False"
    noted = {name for name in trace.read_text().split() if name.startswith("core/")}
    return json.loads(said) | {"folder": json.loads(said)["folder"] == str(folder)}, noted


def test_only_what_is_shared_is_there_before(found: dict[str, tuple[Any, set[str]]]) -> None:
    plain, preloaded = found["plain"][0], found["preloaded"][0]
    assert (plain["early"], preloaded["early"]) == ([], ["torch"])
    assert plain["folder"]
    assert plain["leads"]
    assert "inline" in plain["backend"]
    assert preloaded == plain | {"early": ["torch"], "asked": "preloaded"}


def test_a_run_depends_on_the_same_files(found: dict[str, tuple[Any, set[str]]]) -> None:
    assert "core/influence_ssl/scorer.py" in found["plain"][1]
    assert found["preloaded"][1] == found["plain"][1]
