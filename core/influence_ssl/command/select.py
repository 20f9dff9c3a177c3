"""``influence-ssl select``: a score file in, a list of file names out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from influence_ssl.command.options import Command, threshold
from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.sources import refuse_overwriting


def add(commands: Any) -> None:
    """The sub-command's options."""
    command = Command(
        commands,
        "select",
        run,
        "SCORES --out FILE --drop-...",
        "List the images to keep, or those to drop; no image is ever touched.",
        "scores.parquet --drop-duplicates --drop-highest 1% --out keep.txt",
    )
    option = command.add
    option("scores", "SCORES", "a file of influence-ssl score or check", type=Path)
    option("--out", "FILE", "the list, one name a line", type=Path, required=True)
    option("--list", "WHICH", "what it holds: keep (default) or drop", choices=("keep", "drop"),
           default="keep")  # fmt: skip
    option("--drop-highest", "N|P%", "that many, or that share, of the largest magnitudes (-score)")
    option("--drop-lowest", "N|P%", "the same of the smallest magnitudes")
    option("--drop-above", "X", "magnitudes above X", type=threshold)
    option("--drop-below", "X", "magnitudes below X", type=threshold)
    command.switch(
        "--drop-duplicates",
        "all of each duplicate group but the largest (in pixels, then in bytes)",
    )
    command.switch(
        "--yes", "also drop over a tenth of the images by groups that rest on pixels alone"
    )


def run(options: argparse.Namespace) -> None:
    """Select and write the list."""
    from influence_ssl.analysis.selection import Rule, select, write_list

    rule = Rule(
        options.drop_highest,
        options.drop_lowest,
        options.drop_above,
        options.drop_below,
        options.drop_duplicates,
        options.yes,
    )
    if rule in (Rule(), Rule(yes=True)):
        raise InfluenceValueError("nothing to select by; give at least one --drop-… option.")
    refuse_overwriting("--out", options.out, [options.scores])
    keep, drop = select(options.scores, rule)
    write_list(keep if options.list == "keep" else drop, options.out)
    print(
        f"{len(keep)} to keep, {len(drop)} to drop; the ones to {options.list} are listed in "
        f"{options.out}; no image was touched"
    )
