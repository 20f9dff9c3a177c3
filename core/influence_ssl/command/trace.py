"""``influence-ssl trace``: queries in, the images that help and hurt them out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from influence_ssl.command.options import TOP, Command, natural


def add(commands: Any) -> None:
    """The sub-command's options."""
    command = Command(
        commands,
        "trace",
        run,
        "FOLDER --query PATH --out FILE",
        "Find the images that help and hurt the encoder's representation of other images most.",
        "kept --query queries --encoder mine.py:encoder --out trace.html",
    )
    option = command.add
    option("folder", "FOLDER", "what influence-ssl score --keep wrote", type=Path)
    option("--query", "PATH", "the images to ask about: an image, folder, zip or CSV", type=Path,
           required=True)  # fmt: skip
    option(
        "--out",
        "FILE",
        ".html with pictures, .parquet or .csv; several at once",
        type=Path,
        required=True,
        nargs="+",
    )
    option("--top", "N", f"images in each list ({TOP}, or all of fewer)", type=natural)
    option("--images", "PATH", "where the images that were scored are, if they have moved",
           type=Path)  # fmt: skip
    option(
        "--encoder",
        "SPEC",
        "as given to score; needed for file.py:function, as the folder holds no code",
    )
    option("--weights", "FILE", "where the checkpoint is, if it has moved")
    option("--perturbation", "SPEC", "as given to score")
    command.switch("--cosine", "influences divided by the lengths of both embeddings")
    option("--batch-size", "N", "changes memory, not influences", type=int)
    option("--device", "NAME", "cpu, cuda, cuda:1, ... (cuda where there is one)")
    command.switch("--strict", "stop at an unreadable query instead of skipping it")


def run(options: argparse.Namespace) -> None:
    """Trace the queries."""
    from influence_ssl.command.tracing import trace

    trace(options)
