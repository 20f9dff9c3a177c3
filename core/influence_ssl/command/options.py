"""Common parts of the sub-commands' options."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP = 10
"""The default of ``--top``: images in each list of a trace."""

# Seeds are multiplied in 64 bits before use.
_LARGEST = 10**9


def layout(prog: str) -> argparse.HelpFormatter:
    """Help that fits a screen of 99 columns."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=99)


def natural(text: str) -> int:
    """A non-negative integer."""
    if not text.isdecimal() or int(text) > _LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to {_LARGEST:,}")
    return int(text)


def threshold(text: str) -> float:
    """A number, possibly infinite."""
    number = float(text)
    if math.isnan(number):
        raise ValueError
    return number


class Command:
    """One sub-command: its options, its example, and what it runs."""

    def __init__(
        self,
        commands: Any,
        name: str,
        run: Callable[[argparse.Namespace], None],
        usage: str,
        about: str,
        example: str,
    ) -> None:
        parser = commands.add_parser(
            name,
            help=about[0].lower() + about[1:].rstrip("."),
            description=about,
            epilog=f"example: influence-ssl {name} {example}",
            formatter_class=layout,
            usage=f"influence-ssl {name} {usage} [options]",
            add_help=False,
        )
        parser.set_defaults(run=run)
        # To fit one screen, the help omits what its reader has found already, and what an error
        # message names.
        parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        parser.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
        self.options = parser.add_argument_group()

    def add(self, flag: str, metavar: str, text: str, **settings: Any) -> None:
        self.options.add_argument(flag, metavar=metavar, help=text, **settings)

    def switch(self, flag: str, text: str) -> None:
        self.options.add_argument(flag, action="store_true", help=text)


def partial_folder(out: Path) -> Path:
    """The folder with unfinished work of ``influence-ssl score``, kept until ``out`` is written."""
    return out.with_name(out.name + ".partial")
