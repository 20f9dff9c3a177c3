"""``influence-ssl report``: a score file in, one HTML file out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from influence_ssl.command.options import Command


def add(commands: Any) -> None:
    """The sub-command's options."""
    command = Command(
        commands,
        "report",
        run,
        "SCORES --out FILE",
        "Write one HTML file about a score file, which opens from disk.",
        "scores.parquet --images photos --out report.html",
    )
    command.add("scores", "SCORES", "a file of influence-ssl score", type=Path)
    command.add("--out", "FILE", "the .html file to write", type=Path, required=True)
    command.add("--images", "PATH", "what was given as --data: shows thumbnails", type=Path)
    command.add("--table", "FILE", "CSV of paths and columns, to break scores down by", type=Path)
    command.add("--json", "FILE", "also write the content for machines", type=Path)


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    from influence_ssl.report.html import write

    write(options.scores, options.out, options.images, options.table, options.json)
    print(f"written to {options.out}" + (f" and {options.json}" if options.json else ""))
    if options.images is not None:
        print("the page holds thumbnails of the images; leave out --images to pass it on without")
