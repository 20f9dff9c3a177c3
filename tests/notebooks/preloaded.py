"""Kernels that start with common packages imported, where several chapters run.

Each chapter has a process of its own. It begins as a copy of one that has imported what many
chapters import, which takes seconds each time.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from jupyter_client.provisioning import local_provisioner

# Each copy imports this module: what it imports is shared too, or costs little.
FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]

# None of the project's files, which each run notes (``tracing``), and not pyplot, which prepares
# itself for IPython as it is imported.
SHARED = [
    "ipykernel.kernelapp", "matplotlib.figure", "matplotlib.projections", "matplotlib.style",
    "myst_nb", "nbformat", "pandas", "scipy.stats", "sympy", "torch",
]  # fmt: skip
# What a kernel has matplotlib draw with, which reads it as it is imported.
BACKEND = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}

_processes = get_context("forkserver")


class Kernel:
    """What a provisioner needs of ``subprocess.Popen``."""

    stdin = stdout = stderr = None

    def __init__(self, arguments: list[str], env: Mapping[str, str], cwd: str) -> None:
        here, there = _processes.Pipe()
        self._process = _processes.Process(target=_run, args=(there, arguments, dict(env), cwd))
        self._process.start()
        there.close()
        here.recv()  # from here on it leads a group of processes
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(ready: Connection, arguments: list[str], env: dict[str, str], cwd: str) -> None:
    """Become a kernel, as if Python had just started in ``cwd`` with ``env``."""
    os.setsid()
    ready.send(None)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    asked = list(filter(None, env.get("PYTHONPATH", "").split(os.pathsep)))
    own = [path for path in sys.path if path not in asked and not _of_pytest(path)]
    sys.path[:] = [*asked, *own]
    sys.modules.pop("sitecustomize", None)
    with suppress(ModuleNotFoundError):
        import sitecustomize  # noqa: F401

    from ipykernel.kernelapp import IPKernelApp

    # A kernel ends with its parent.
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


def _of_pytest(path: str) -> bool:
    """Whether a folder is on the path for the tests alone: a chapter does not find them."""
    return path in ("", str(ROOT), str(ROOT / "book"), str(ROOT / "book" / "_ext"), str(FOLDER))


def _launch(cmd: list[str], *, env: Mapping[str, str], cwd: str | None = None, **_: Any) -> Kernel:
    """In place of jupyter_client's: ``cmd`` is ``python … -m ipykernel_launcher …``."""
    return Kernel(cmd[cmd.index("ipykernel_launcher") + 1 :], env, cwd or os.getcwd())


def install() -> None:
    """Start this process's kernels so."""
    _processes.set_forkserver_preload(SHARED)
    # Now, so that it has nothing of a chapter's environment.
    with mock.patch.dict(os.environ, BACKEND | os.environ):
        forkserver.ensure_running()
    local_provisioner.launch_kernel = _launch
