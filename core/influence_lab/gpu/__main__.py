"""``python -m influence_lab.gpu``: run parts on a machine with a card, before and after that.

Before PyTorch's companions are known to be there, nothing is imported but Python's own library.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from influence_lab.gpu import packages
from influence_lab.gpu.budget import MINUTES

BUILD = packages.ROOT / "_build"
LETTERS = "abcdefg"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 where all was done, 1 after an error, 3 where steps are left to do."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except packages.Missing as error:
        print(f"influence_lab.gpu: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m influence_lab.gpu", description=__doc__)
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run parts; a second call goes on where one stopped")
    run.add_argument("parts", nargs="+", choices=LETTERS, metavar="PART", help="a to g")
    run.add_argument("--budget", type=float, help=f"seconds of this call (default: {60 * MINUTES})")
    run.add_argument("--out", type=Path, help="folder of what is brought back (_build/gpu/out)")
    run.add_argument("--state", type=Path, help="folder of what a later call needs (_build/gpu)")
    run.add_argument("--wheels", type=Path, default=BUILD / "wheels", help="folder of wheels")
    run.add_argument("--dry", action="store_true", help="in miniature on the CPU, always anew")
    run.set_defaults(run=_run)
    wheels = commands.add_parser("wheels", help="download what the machine may lack")
    wheels.add_argument("--wheels", type=Path, default=BUILD / "wheels", help="folder of wheels")
    wheels.add_argument("--python", default="3.12", help="the machine's version (default: 3.12)")
    wheels.set_defaults(run=_wheels)
    unpack = commands.add_parser("unpack", help="put together what was brought back")
    unpack.add_argument("out", type=Path, help="the folder that was brought back")
    unpack.add_argument("to", type=Path, help="where the files are written")
    unpack.set_defaults(run=_unpack)
    return found


def _run(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    if options.dry and options.state is None:
        with tempfile.TemporaryDirectory() as folder:
            options.state = Path(folder)
            options.out = options.out or Path(folder) / "out"
            return _run(options)
    options.state = options.state or BUILD / "gpu"
    options.out = options.out or options.state / "out"
    options.budget = 60 * MINUTES if options.budget is None else options.budget
    packages.provide(options.wheels, options.state / "site")
    if "g" in options.parts:
        packages.provide_peers(options.wheels, options.state / "site")
    commit = options.wheels / packages.COMMIT
    if commit.is_file():
        os.environ.setdefault("INFLUENCE_SSL_COMMIT", commit.read_text().strip())
    from influence_lab.gpu.call import call
    from influence_ssl.errors import InfluenceError

    # To install wheels and to read PyTorch from a cold disk is part of the call.
    seconds = options.budget - (time.monotonic() - begin)
    try:
        left = call(options.parts, options.state, options.out, seconds, options.dry)
    except InfluenceError as error:
        print(f"influence_lab.gpu: {error}", file=sys.stderr)
        return 1
    return 3 if left else 0


def _wheels(options: argparse.Namespace) -> int:
    names = packages.fetch(options.wheels, options.python)
    size = sum((options.wheels / name).stat().st_size for name in names)
    print(f"{len(names)} wheels, {size / 1e6:.1f} MB, in {options.wheels}")
    return 0


def _unpack(options: argparse.Namespace) -> int:
    from influence_lab.gpu.packing import unpack
    from influence_ssl.errors import InfluenceError

    try:
        print("\n".join(unpack(options.out, options.to)))
    except InfluenceError as error:
        print(f"influence_lab.gpu: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
