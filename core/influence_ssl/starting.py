"""Ctrl-C while a command is starting gives one line, as it does later.

To import PyTorch takes a second, in which Python would show which line it was at. This module is
imported before, and acts only in a process that is one of the commands.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

_COMMANDS = "influence-ssl", "influence-lab"


def _command() -> str | None:
    """The command that this process is, or ``None``."""
    name = os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".exe")
    if name == "-m":  # while Python looks for the module
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
        name = "influence-ssl" if module.partition(".")[0] == "influence_ssl" else ""
    return name if name in _COMMANDS else None


def _stop(*_: object) -> NoReturn:
    # Without an exception, which the modules that are being imported may catch.
    try:
        os.write(2, f"{_command()}: interrupted; nothing was written\n".encode())
    finally:
        os._exit(130)


def started() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` again, which the command handles from here on."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# A process in the background may have been told to ignore the signal.
if _command() is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)
