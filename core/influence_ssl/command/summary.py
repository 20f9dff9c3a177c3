"""The summary that ``influence-ssl score`` prints."""

from __future__ import annotations

import argparse
import re
from datetime import timedelta

from influence_ssl.analysis.duplicates import Group
from influence_ssl.command.options import partial_folder
from influence_ssl.errors import printable
from influence_ssl.files.images import ImageFiles
from influence_ssl.files.sources import counted
from influence_ssl.scores import Scores

_LISTED = 20


def summarise(
    scores: Scores,
    images: ImageFiles,
    options: argparse.Namespace,
    seconds: float,
    groups: list[Group],
) -> None:
    """Print what was scored, the cost, what was left out, and both ends of the ranking."""
    found = scores.provenance
    took = timedelta(seconds=round(seconds))
    print(f"{len(scores)} images ({size(images)}) scored on {found['device']} in {took}")
    print(f"cost: {options.draws} x forward and backward pass over each image and its copy")
    if found["untrained"]:
        print(
            f"untrained: random weights from seed {options.seed}, because --weights was not given"
        )
    if "weights part" in found:
        print(f"weights: names that begin with {found['weights part']!r} in the checkpoint")
    if "weights left" in found:
        print(
            f"heads not loaded from the checkpoint: {printable(', '.join(found['weights left']))}"
        )
    if images.converted:
        print(f"converted to 8-bit RGB: {counted(images.converted)}")
    if images.rotated:
        print(rotation(images))
    if images.ignored:
        print(f"left out by their names: {counted(images.ignored)}")
    if images.skipped:
        print(f"{len(images.skipped)} skipped as unreadable:")
        for name, reason in images.skipped[:_LISTED]:
            print(f"  {printable(name)}: {reason}")
        if len(images.skipped) > _LISTED:
            print(f"  and {len(images.skipped) - _LISTED} more, all listed in the provenance")
    hidden = [name for name in found["left out"] if not name.endswith("bias")]
    print(f"weights of {len(found['layers'])} layers form the score; {_left_out(hidden)}")
    print("score = -g'(H + damping)^-1 g <= 0: the more negative, the higher the influence")
    shown = min(3, len(scores) // 2)
    for which in ("highest", "lowest"):
        for row in scores.order(which)[:shown]:
            print(f"  {which:7}  {scores.values[row]:12.6g}  {printable(images.names[row])}")
    inside = sum(len(group.members) for group in groups)
    print(f"likely duplicates: {inside} images in {grouped(len(groups))}")
    if found["reliability"] is None:
        why = "with one draw; --draws 2 or more estimates it"
        print(f"reliability: not estimated {why if options.draws < 2 else 'from equal scores'}")
    else:
        print(
            f"reliability: {found['reliability']:.3f}, the expected rank correlation with "
            f"another run of {options.draws} draws"
        )
    if (others := partial_folder(options.out)).is_dir():
        print(f"unfinished work with other settings is kept in {others}; remove it if not needed")
    kept = options.keep
    print(f"written to {options.out}" + (f" and {kept}" if kept is not None else ""))


def size(images: ImageFiles) -> str:
    """The shape of the images, such as ``3 x 32 x 32``."""
    return " x ".join(map(str, images.shape or ()))


def rotation(images: ImageFiles) -> str:
    """The number of images that a viewer would rotate, and how to rotate their pixels."""
    return (
        f"EXIF rotation not applied: {images.rotated} (read with their pixels as stored; Pillow's "
        "ImageOps.exif_transpose rotates the pixels themselves)"
    )


def grouped(count: int) -> str:
    """``1 group``, ``2 groups``."""
    return "1 group" if count == 1 else f"{count} groups"


def _left_out(names: list[str]) -> str:
    if not names:
        return "left out: only biases"
    # Block numbers in names are masked, so that a hundred blocks take one line.
    kinds = list(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in names))
    rest = f" and {len(kinds) - 4} more kinds" if len(kinds) > 4 else ""
    return f"left out, besides biases: {', '.join(kinds[:4])}{rest} (all in the provenance)"
