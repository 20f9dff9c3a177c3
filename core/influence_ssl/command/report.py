"""``influence-ssl report``: turns a score file into one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from influence_ssl.command.options import Command


def add(commands: Any) -> None:
    """Add the sub-command."""
    command = Command(
        commands,
        "report",
        run,
        "SCORES --out FILE",
        "Write an HTML report of a score file that opens from disk.",
        "scores.parquet --images photos --out report.html",
    )
    command.add("scores", "SCORES", "a file written by influence-ssl score", type=Path)
    command.add("--out", "FILE", "the .html file to write", type=Path, required=True)
    command.add("--images", "PATH", "the scored --data, to show thumbnails", type=Path)
    command.add(
        "--table", "FILE", "CSV of paths and columns by which to break down the scores", type=Path
    )
    command.add(
        "--kept", "FOLDER", "folder written by influence-ssl score --keep, to draw a map", type=Path
    )
    command.add("--json", "FILE", "also write the content as JSON", type=Path)


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    from influence_ssl.command import settings
    from influence_ssl.report.html import write

    settings.check_output(options.out, {".html": ("jinja2",)})
    if options.json is not None:
        settings.check_output(options.json, {".json": ()}, "--json")
    drawn = None
    if options.kept is not None:
        from influence_ssl.command import embeddings

        drawn = embeddings.representations(options.kept)
    every = write(options.scores, options.out, options.images, options.table, options.json, drawn)
    print(f"written to {options.out}" + (f" and {options.json}" if options.json else ""))
    if every is not None:
        print(f"the page contains only some of the rows; all rows are in {every}")
    if options.images is not None:
        print("the page contains thumbnails of the images; leave out --images to share it")
