"""The checks before a commit are those of ``make lint``, by the same programs."""

from __future__ import annotations

import re
from pathlib import Path

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
