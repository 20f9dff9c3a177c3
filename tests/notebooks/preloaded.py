"""Kernels that start with PyTorch imported: a plugin of pytest, for several chapters.

Each chapter has a process of its own. It begins as a copy of one that has imported what nearly all
chapters import, which takes seconds each time.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jupyter_client.provisioning import local_provisioner

TESTS = [Path(__file__).resolve().parent, *Path(__file__).resolve().parents[1:3]]
# Not pyplot, which prepares itself for IPython as it is imported.
SHARED = ["ipykernel.kernelapp", "torch", "scipy.stats", "influence_ssl"]

_processes = get_context("forkserver")
_processes.set_forkserver_preload(SHARED)


class Kernel:
    """What a provisioner needs of ``subprocess.Popen``."""

    stdin = stdout = stderr = None

    def __init__(self, arguments: list[str], env: Mapping[str, str], cwd: str) -> None:
        here, there = _processes.Pipe()
        self._process = _processes.Process(target=_run, args=(there, arguments, dict(env), cwd))
        self._process.start()
        there.close()
        here.recv()  # from here on it leads a group of processes
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
    os.setsid()
    ready.send(None)
    # A reader's kernel does not find the tests, whose folder comes first.
    env["PYTHONPATH"] = env["PYTHONPATH"].partition(os.pathsep)[2]
    sys.path[:] = ["", *(path for path in sys.path if Path(path).resolve() not in TESTS)]
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)

    from ipykernel.kernelapp import IPKernelApp

    # A kernel ends with its parent.
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


def launch(cmd: list[str], *, env: Mapping[str, str], cwd: str | None = None, **_: Any) -> Kernel:
    """In place of jupyter_client's: ``cmd`` is ``python … -m ipykernel_launcher …``."""
    return Kernel(cmd[cmd.index("ipykernel_launcher") + 1 :], env, cwd or os.getcwd())


local_provisioner.launch_kernel = launch
