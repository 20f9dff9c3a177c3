"""``influence-ssl compare``: prints the agreement of two score files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from influence_ssl.command.options import Command, natural


def add(commands: Any) -> None:
    """Add the sub-command."""
    command = Command(
        commands,
        "compare",
        run,
        "A B",
        "Compare two score files of the same images: rank correlation and largest moves.",
        "scores.parquet other.parquet",
    )
    command.add("a", "A", "a file written by influence-ssl score", type=Path)
    command.add("b", "B", "another such file", type=Path)
    command.add(
        "--top",
        "N",
        "number of images to list among those that moved most (10)",
        type=natural,
        default=10,
    )


def run(options: argparse.Namespace) -> None:
    """Compare and print."""
    from influence_ssl.analysis.comparison import compare, show

    print(show(compare(options.a, options.b, options.top), options.a, options.b))
