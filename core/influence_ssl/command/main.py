"""The ``influence-ssl`` command."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

import torch

from influence_ssl.command import check, compare, report, score, select, trace
from influence_ssl.command.options import layout, partial_folder
from influence_ssl.errors import InfluenceError, described, printable
from influence_ssl.starting import started
from influence_ssl.version import __version__

_THREE = (
    "score --data photos --encoder mine.py:encoder --out scores.parquet",
    "report scores.parquet --images photos --out report.html",
    "select scores.parquet --drop-duplicates --out keep.txt",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 2 after an error (one line on stderr), 130 after Ctrl-C.

    It returns 1, without a message, if the reader of its output has gone.
    """
    known = parser()
    options, unknown = known.parse_known_args(arguments)
    if unknown:  # argparse would name the help of the whole command, which lists no options
        known.exit(
            2,
            f"influence-ssl: error: unrecognized arguments: {printable(' '.join(unknown))}; see "
            f"influence-ssl {options.command} --help\n",
        )
    # A terminal that cannot show a name must not fail after hours of work.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        started()
        options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # As after ``| head -1``. At exit, Python would flush the rest once more, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"influence-ssl: interrupted; {_kept(options)}", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            traceback.print_exc()
        print(f"influence-ssl: error: {_message(error, options)}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line. Its ``--help`` is the source of the reference page."""
    found = _Parser(
        "influence-ssl",
        description="Label-free influence of images on an encoder.",
        epilog="\n  influence-ssl ".join(["three commands:", *_THREE]),
        formatter_class=layout,
    )
    found.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (check, score, report, compare, select, trace):
        command.add(commands)
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"influence-ssl: error: {message}; see {self.prog} --help\n")


def _kept(options: argparse.Namespace) -> str:
    if options.command == "score" and (folder := partial_folder(options.out)).is_dir():
        return f"finished work is kept in {folder}; repeat the command to resume"
    return "nothing was written"


def _message(error: Exception, options: argparse.Namespace) -> str:
    if any(_out_of_memory(part) for part in _causes(error)):
        other = "fewer queries" if options.command == "trace" else "a lower --rank"
        return f"out of memory; use a smaller --batch-size or {other}."
    if any(_disk_is_full(part) for part in _causes(error)):
        return f"no space left on the disk; free some space; {_kept(options)}."
    if isinstance(error, InfluenceError | ImportError):
        return printable(" ".join(str(error).split()))
    return f"{described(error)}; --traceback shows where."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _out_of_memory(error: BaseException) -> bool:
    # On a CPU, PyTorch reports it in words.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _disk_is_full(error: BaseException) -> bool:
    # NumPy reports a short write in words, without a number.
    return isinstance(error, OSError) and (
        error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error)
    )


if __name__ == "__main__":
    sys.exit(main())
