"""The ``influence-ssl`` command."""

from __future__ import annotations

import argparse
import errno
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from influence_ssl.errors import InfluenceError, InfluenceValueError
from influence_ssl.report.loading import described
from influence_ssl.report.scoring import DTYPES, partial_folder, score
from influence_ssl.report.sources import refuse_overwriting

DRAWS = 2
"""The fewest draws whose scores have a reliability of 0.95 in the benchmark of the book's chapter
on it (real CIFAR-10, rank 16); a test holds it to the record."""

# Seeds are multiplied before they are taken, in 64 bits.
_LARGEST = 10**9

_THREE = (
    "score --data photos --encoder mine.py:encoder --out scores.parquet",
    "report scores.parquet --images photos --out report.html",
    "select scores.parquet --drop-duplicates --out keep.txt",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 2 after an error (one line on stderr), or 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    # A terminal that cannot show a name must not fail after hours of work.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options.run(options)
    except KeyboardInterrupt:
        print(f"influence-ssl: interrupted; {_kept(options)}", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            traceback.print_exc()
        print(f"influence-ssl: error: {_message(error, options)}", file=sys.stderr)
        return 2
    return 0


def report(options: argparse.Namespace) -> None:
    """``influence-ssl report``: a score file in, one HTML file out."""
    from influence_ssl.report import html

    html.write(options.scores, options.out, options.images, options.table, options.json)
    print(f"written to {options.out}" + (f" and {options.json}" if options.json else ""))


def compare(options: argparse.Namespace) -> None:
    """``influence-ssl compare``: two score files in, their agreement on the terminal."""
    from influence_ssl.report import compare

    found = compare.compare(options.a, options.b, options.top)
    print(compare.show(found, options.a, options.b))


def select(options: argparse.Namespace) -> None:
    """``influence-ssl select``: a score file in, a list of file names out."""
    from influence_ssl.report import select

    rule = select.Rule(
        options.drop_highest,
        options.drop_lowest,
        options.drop_above,
        options.drop_below,
        options.drop_duplicates,
    )
    if rule == select.Rule():
        raise InfluenceValueError("nothing to select by; give at least one --drop-… option.")
    refuse_overwriting("--out", options.out, [options.scores])
    keep, drop = select.select(options.scores, rule)
    select.write_list(keep if options.list == "keep" else drop, options.out)
    print(
        f"{len(keep)} to keep, {len(drop)} to drop; the ones to {options.list} are listed in "
        f"{options.out}; no image was touched"
    )


def _kept(options: argparse.Namespace) -> str:
    if options.command == "score" and (folder := partial_folder(options.out)).is_dir():
        return f"what is done is kept in {folder}; the same command again goes on from there"
    return "nothing was written"


def _message(error: Exception, options: argparse.Namespace) -> str:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory; give a smaller --batch-size or a lower --rank."
    if any(_disk_is_full(part) for part in (error, error.__cause__)):
        return f"no space left on the disk; free some, and note: {_kept(options)}."
    if isinstance(error, InfluenceError | ImportError):
        return " ".join(str(error).split())
    return f"{described(error)}; --traceback shows where."


def _disk_is_full(error: BaseException | None) -> bool:
    # NumPy reports a short write in words, without a number.
    return isinstance(error, OSError) and (
        error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error)
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"influence-ssl: error: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The command line. Its ``--help`` is the source of the reference page."""
    found = _Parser(
        "influence-ssl",
        description="Label-free influence of images on an encoder.",
        epilog="\n  influence-ssl ".join(["three commands:", *_THREE]),
        formatter_class=_layout,
    )
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for make in (_score_parser, _report_parser, _compare_parser, _select_parser):
        make(commands)
    return found


def _layout(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=99)


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) > _LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from 0 to {_LARGEST:,}")
    return int(text)


def _threshold(text: str) -> float:
    number = float(text)
    if math.isnan(number):
        raise ValueError
    return number


class _Command:
    """One subcommand: its options, its example, and what it runs."""

    def __init__(
        self, commands: Any, run: Callable[..., None], usage: str, about: str, example: str
    ) -> None:
        name = run.__name__
        parser = commands.add_parser(
            name,
            help=about[0].lower() + about[1:].rstrip("."),
            description=about,
            epilog=f"example: influence-ssl {name} {example}",
            formatter_class=_layout,
            usage=f"influence-ssl {name} {usage} [options]",
            add_help=False,
        )
        parser.set_defaults(run=run)
        # A screen is short: what a reader of the help has found already is not in it, nor what the
        # error that it belongs to names.
        parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        parser.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
        self.options = parser.add_argument_group()

    def add(self, flag: str, metavar: str, text: str, **settings: Any) -> None:
        self.options.add_argument(flag, metavar=metavar, help=text, **settings)

    def switch(self, flag: str, text: str) -> None:
        self.options.add_argument(flag, action="store_true", help=text)


def _score_parser(commands: Any) -> None:
    command = _Command(
        commands,
        score,
        "--data PATH --encoder SPEC --out FILE",
        "Score every image by its influence on the encoder's own representation of it.",
        "--data photos --encoder mine.py:encoder --out scores.parquet",
    )
    add, switch = command.add, command.switch
    add(
        "--data",
        "PATH",
        "folder, zip, or CSV (comma, semicolon or tab) with a column 'path'",
        type=Path,
        required=True,
    )
    add(
        "--encoder",
        "SPEC",
        "timm:NAME, torchvision:NAME, or package.module:function or file.py:function that "
        "returns a module (fed RGB in [0, 1]) or a pair (module, preprocess)",
        required=True,
    )
    add(
        "--weights",
        "FILE",
        "checkpoint (--weights-part NAME: which part) or 'pretrained' (may download)",
    )
    # The help of --weights names it, and so does the error that asks for it.
    add("--weights-part", "NAME", argparse.SUPPRESS)
    add("--out", "FILE", ".parquet or .csv; .npz holds the scores alone", type=Path, required=True)
    add("--noise-mean", "X", "mean of the Gaussian noise that perturbs (0.05)", type=float)
    add("--noise-std", "X", "its standard deviation (0.2)", type=float)
    add("--perturbation", "SPEC", "instead: your function (x, index, draw, seed) -> perturbed x")
    add(
        "--curvature",
        "NAME",
        "logra (default), fisher (exact, small encoders) or identity (gradient norm)",
        choices=("logra", "fisher", "identity"),
        default="logra",
    )
    add("--rank", "R", "of logra's projections, in each layer (16)", type=int)
    add(
        "--damping",
        "L",
        "relative:C, C times the mean eigenvalue (relative:0.1), or the number itself",
    )
    add(
        "--layers",
        "NAMES",
        "modules that count (all): conv1,fc; --layers=-NAME leaves NAME out",
    )
    add(
        "--draws",
        "N",
        "perturbations of each image (2, the fewest for a reliability of 0.95)",
        type=int,
        default=DRAWS,
    )
    add("--seed", "N", "of noise, projections and untrained weights (0)", type=_natural, default=0)
    add("--batch-size", "N", "changes memory, not scores (256; fewer above 64 x 64)", type=int)
    add("--dtype", "TYPE", "float64, float32 or bfloat16 (the encoder's own)", choices=DTYPES)
    add("--device", "NAME", "cpu, cuda, cuda:1, ... (cuda where there is one)")
    switch("--strict", "stop at an unreadable image instead of skipping it")


def _report_parser(commands: Any) -> None:
    command = _Command(
        commands,
        report,
        "SCORES --out FILE",
        "Write one HTML file about a score file, which opens from disk.",
        "scores.parquet --images photos --out report.html",
    )
    command.add("scores", "SCORES", "a file of influence-ssl score", type=Path)
    command.add("--out", "FILE", "the .html file to write", type=Path, required=True)
    command.add("--images", "PATH", "what was given as --data: shows thumbnails", type=Path)
    command.add("--table", "FILE", "CSV of paths and columns, to break scores down by", type=Path)
    command.add("--json", "FILE", "also write the content for machines", type=Path)


def _compare_parser(commands: Any) -> None:
    command = _Command(
        commands,
        compare,
        "A B",
        "Compare two score files of the same images: rank correlation, and what moved most.",
        "scores.parquet other.parquet",
    )
    command.add("a", "A", "a file of influence-ssl score", type=Path)
    command.add("b", "B", "another one", type=Path)
    command.add(
        "--top", "N", "images to list of those that moved most (10)", type=_natural, default=10
    )


def _select_parser(commands: Any) -> None:
    command = _Command(
        commands,
        select,
        "SCORES --out FILE --drop-...",
        "List the images to keep, or those to drop; no image is ever touched.",
        "scores.parquet --drop-duplicates --drop-highest 1% --out keep.txt",
    )
    add = command.add
    add("scores", "SCORES", "a file of influence-ssl score", type=Path)
    add("--out", "FILE", "the list, one name a line", type=Path, required=True)
    add("--list", "WHICH", "what it holds: keep (default) or drop", choices=("keep", "drop"),
        default="keep")  # fmt: skip
    add("--drop-highest", "N|P%", "that many, or that share, of the largest magnitudes (-score)")
    add("--drop-lowest", "N|P%", "the same of the smallest magnitudes")
    add("--drop-above", "X", "magnitudes above X", type=_threshold)
    add("--drop-below", "X", "magnitudes below X", type=_threshold)
    command.switch("--drop-duplicates", "all of each duplicate group but one")


if __name__ == "__main__":
    sys.exit(main())
