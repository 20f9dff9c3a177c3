"""``influence-ssl select``: turns a score file into a list of file names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from influence_ssl.command.options import Command, threshold
from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.sources import refuse_overwriting


def add(commands: Any) -> None:
    """Add the sub-command."""
    command = Command(
        commands,
        "select",
        run,
        "SCORES --out FILE --drop-...",
        "List the images to keep or to drop; no image is changed.",
        "scores.parquet --drop-duplicates --drop-highest 1% --out keep.txt",
    )
    option = command.add
    option("scores", "SCORES", "a file written by influence-ssl score or check", type=Path)
    option("--out", "FILE", "the list, one name per line", type=Path, required=True)
    option("--list", "WHICH", "which images: keep (default) or drop", choices=("keep", "drop"),
           default="keep")  # fmt: skip
    option("--drop-highest", "N|P%", "number or share of the largest -scores")
    option("--drop-lowest", "N|P%", "number or share of the smallest")
    option("--drop-above", "X", "magnitudes above X", type=threshold)
    option("--drop-below", "X", "magnitudes below X", type=threshold)
    command.switch(
        "--drop-duplicates",
        "all but the largest of each duplicate group (in pixels, then in bytes)",
    )
    command.switch(
        "--yes", "allow groups that rest on pixels alone to drop over a tenth of the images"
    )


def run(options: argparse.Namespace) -> None:
    """Select and write the list."""
    from influence_ssl.analysis.selection import Rule, select, write_list
    from influence_ssl.command import settings

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
    settings.check_output(options.out, {".txt": (), ".csv": ()})
    settings.refuse_other_results(options.out, None)
    keep, drop = select(options.scores, rule)
    write_list(keep if options.list == "keep" else drop, options.out)
    print(
        f"{len(keep)} to keep, {len(drop)} to drop; the ones to {options.list} are listed in "
        f"{options.out}; no image was changed"
    )
