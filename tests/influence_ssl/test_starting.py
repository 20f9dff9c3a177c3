"""Ctrl-C while a command is importing, and everywhere else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Python imports this by itself, before anything of ours: the signal comes when a module is sought.
SITE = """
import os, signal, sys

class Interrupting:
    def find_spec(name, path=None, target=None):
        if name == os.environ["INTERRUPTED_AT"]:
            sys.meta_path.remove(Interrupting)
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting)
"""
SCRIPT = "import sys\nfrom {} import main\nsys.exit(main({!r}))\n"
ENTRIES = {
    "influence-ssl": ("influence_ssl.command.main", ["select"]),
    "influence-lab": ("influence_lab.cli", ["score", "simclr"]),
}


def interrupted(at: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "INTERRUPTED_AT": at}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("at", ["numpy", "torch", "torch.nn", "influence_ssl.scorer"])
@pytest.mark.parametrize("name", ["influence-ssl", "influence-lab", "-m influence_ssl"])
def test_ctrl_c_during_the_imports_is_one_line(name: str, at: str, tmp_path: Path) -> None:
    arguments = name.split()
    if name in ENTRIES:
        (tmp_path / name).write_text(SCRIPT.format(*ENTRIES[name]))
        arguments = [str(tmp_path / name)]
    found = interrupted(at, tmp_path, *arguments)
    shown = name if name in ENTRIES else "influence-ssl"
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr == f"{shown}: interrupted; nothing was written\n"


def test_ctrl_c_in_another_program_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "try:\n    import influence_ssl\nexcept KeyboardInterrupt:\n    print('mine')\n"
    )
    found = interrupted("torch", tmp_path, str(tmp_path / "mine.py"))
    assert (found.returncode, found.stdout, found.stderr) == (0, "mine\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_command_that_was_told_to_ignore_ctrl_c_still_does(tmp_path: Path) -> None:
    name = tmp_path / "influence-ssl"
    name.write_text(
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import influence_ssl\nassert signal.getsignal(signal.SIGINT) == signal.SIG_IGN\n"
    )
    found = interrupted("torch", tmp_path, str(name))
    assert (found.returncode, found.stderr) == (0, "")


def test_a_command_handles_ctrl_c_itself_once_it_runs(tmp_path: Path) -> None:
    name = tmp_path / "influence-ssl"
    name.write_text(
        "import signal\nfrom influence_ssl import starting\n"
        "assert signal.getsignal(signal.SIGINT) is starting._stop\nstarting.started()\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    found = interrupted("nothing", tmp_path, str(name))
    assert (found.returncode, found.stderr) == (0, "")
