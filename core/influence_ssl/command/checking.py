"""Finds duplicates, off-topic candidates and flagged images; also writes the encoder's features."""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from influence_ssl.ahead import in_threads, readers
from influence_ssl.analysis.across import across
from influence_ssl.analysis.duplicates import Group, confirmed, duplicate_groups
from influence_ssl.analysis.neighbours import forecast
from influence_ssl.analysis.offtopic import Distances, distances
from influence_ssl.analysis.ranking import read_labels
from influence_ssl.command import settings
from influence_ssl.command.summary import grouped, rotation, size
from influence_ssl.encoders.loading import Loaded, load_encoder
from influence_ssl.errors import (
    InfluenceTypeError,
    InfluenceValueError,
    described,
    printable,
)
from influence_ssl.files.sources import counted, refuse_overwriting
from influence_ssl.files.tables import frame, save
from influence_ssl.files.writing import replacing
from influence_ssl.provenance import made_with

if TYPE_CHECKING:
    import pandas

    from influence_ssl.files.images import ImageFiles

_LISTED = 5


@dataclass(frozen=True)
class Checked:
    """The columns of a check, and their provenance."""

    columns: dict[str, Any]
    provenance: dict[str, Any]

    def to_pandas(self) -> pandas.DataFrame:
        """The columns as a table."""
        return frame(self.columns)


def check(options: argparse.Namespace) -> None:
    """Run the command; raises :class:`InfluenceError`."""
    device = settings.device(options.device) or torch.device("cpu")
    inputs = [options.data, options.table, Path(options.weights or ".")]
    features = options.out.with_name(f"{options.out.name}.features.npz")
    for option, path in (("--out", options.out), ("--out", features)):
        refuse_overwriting(option, path, inputs)
    if options.out.suffix == ".npz":
        raise InfluenceValueError(f"--out {str(options.out)!r} must end in .csv or .parquet.")
    if options.batch_size < 1:
        raise InfluenceValueError("--batch-size 0: give at least 1.")
    settings.check_output(options.out)
    settings.refuse_other_results(options.out, settings.CHECK)
    loaded = load_encoder(options.encoder, options.weights, options.seed, options.weights_part)

    from influence_ssl.files.images import ImageFiles

    warnings.filterwarnings("ignore", module=r"PIL\.")
    started, progress = time.monotonic(), sys.stderr.isatty()
    listed = ImageFiles(options.data, loaded.preprocess)
    images = listed.readable(options.strict, progress, options.workers)
    labels = None if options.table is None else read_labels(options.table, images.names)
    z = represent(loaded.module, images, options.batch_size, device, options.workers)
    # Three searches for the groups, one for the nearest image.
    slow = forecast(z, 4)
    if slow is not None:
        print(slow, flush=True)
    groups = duplicate_groups(z, images, progress)
    far = distances(z) if len(images) > 1 else None
    columns = _columns(images, groups, far)
    spread = across(groups, images.names, labels)
    for name, found in spread.items():
        columns[f"groups across {name}"] = found
    provenance = {
        "checked": True,
        "arguments": {
            name.replace("_", "-"): value if isinstance(value, int | float) else str(value)
            for name, value in vars(options).items()
            if value is not None and name not in ("run", "command", "traceback")
        },
        "data": {"source": str(images.source), "images": len(images),
                 "skipped": [list(skipped) for skipped in images.skipped]},
        "untrained": loaded.untrained,
        "duplicate groups": [group._asdict() for group in groups],
        **made_with(),
    }  # fmt: skip
    with replacing(features) as temporary:
        np.savez_compressed(temporary, names=np.array(images.names), features=z.cpu().numpy())
    save(Checked(columns, provenance), options.out)
    _summarise(options, images, loaded, columns, provenance, time.monotonic() - started)
    print(f"written to {options.out}, the features to {features}")


def represent(
    encoder: nn.Module, images: ImageFiles, batch: int, device: torch.device,
    workers: int | None = None,
) -> Tensor:  # fmt: skip
    """The representations (N, D) in float32, in eval mode, on ``device``."""
    training, found = encoder.training, []
    encoder.eval().to(device)
    floats = (one.dtype for one in encoder.parameters() if one.is_floating_point())
    dtype = next(floats, torch.float32)
    assert images.shape is not None  # that of what is readable
    threads = readers(math.prod(images.shape)) if workers is None else workers
    items = in_threads(images.__getitem__, range(len(images)), threads)
    with torch.inference_mode(), closing(items):
        for start in range(0, len(images), batch):
            x = images.kept_batch(range(start, min(start + batch, len(images))))
            if x is None:
                x = torch.stack([item[0] for item in islice(items, batch)])
            try:
                z = encoder(x.to(device, dtype))
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise InfluenceValueError(
                    f"the encoder fails on the batch from {images.names[start]!r} "
                    f"({size(images)}): {described(error)}; if it needs another size, let its "
                    "function return (module, preprocess)."
                ) from error
            if not isinstance(z, Tensor):
                raise InfluenceTypeError(
                    f"the encoder returned a {type(z).__name__}; wrap it so that it returns one "
                    "tensor (B, D)."
                )
            found.append(z.flatten(1).float())
    encoder.train(training)
    z = torch.cat(found)
    wrong = torch.nonzero(~z.isfinite().all(1)).flatten().tolist()
    if wrong:
        raise InfluenceValueError(
            f"the representation of {images.names[wrong[0]]!r} is not finite; use another encoder "
            "or remove the image."
        )
    return z


def _columns(images: ImageFiles, groups: list[Group], far: Distances | None) -> dict[str, Any]:
    import pandas

    from influence_ssl.analysis.flags import flags
    from influence_ssl.files.looks import Looks

    group: list[int | None] = [None] * len(images)
    for number, found in enumerate(groups, 1):
        for member in found.members:
            group[member] = number
    columns: dict[str, Any] = {
        "index": images.index.numpy(),
        "name": list(images.names),
        "sha256": list(images.sha256),
    }
    if far is not None:
        columns["nearest"] = [images.names[i] for i in far.neighbours.place[:, 0]]
        columns["similarity"] = far.neighbours.similarity[:, 0].astype(np.float64)
        columns["density"], columns["mahalanobis"] = far.density, far.mahalanobis
    looks = zip(*images.looks, strict=True)
    columns |= {name: list(column) for name, column in zip(Looks._fields, looks, strict=True)}
    columns["flags"] = ["; ".join(found) for found in flags(images.looks)]
    columns["duplicate_group"] = pandas.array(group, dtype="Int64")
    return columns


def _summarise(
    options: argparse.Namespace,
    images: ImageFiles,
    loaded: Loaded,
    columns: dict[str, Any],
    provenance: dict[str, Any],
    seconds: float,
) -> None:
    took = timedelta(seconds=round(seconds))
    print(f"{len(images)} images ({size(images)} for the encoder) checked in {took}")
    if loaded.limits:
        print(f"note: {loaded.limits}")
    if loaded.untrained:
        print(
            f"warning: the encoder has random weights from seed {options.seed}, because "
            "--weights was not given; its off-topic images are not meaningful"
        )
    if images.converted:
        print(f"converted to 8-bit RGB: {counted(images.converted)}")
    if images.rotated:
        print(rotation(images))
    if images.ignored:
        print(f"left out by their names: {counted(images.ignored)}")
    for name, reason in images.skipped[:_LISTED]:
        print(f"skipped: {printable(name)}: {reason}")
    if len(images.skipped) > _LISTED:
        print(f"skipped: {len(images.skipped) - _LISTED} more, all listed in the provenance")
    groups = provenance["duplicate groups"]
    inside = sum(len(group["members"]) for group in groups)
    sure = sum(confirmed(provenance).values())
    print(
        f"likely duplicates: {inside} images in {grouped(len(groups))}, {sure} of them confirmed "
        f"by files or representations, {len(groups) - sure} by pixels alone"
    )
    for name, found in columns.items():
        if name.startswith("groups across ") and any(found):
            numbers = {g for g, text in zip(columns["duplicate_group"], found, strict=True) if text}
            print(f"{name.removeprefix('groups ')}: {grouped(len(numbers))} of duplicates")
    if "density" in columns:
        # In the planted benchmark it finds more than the distance to the nearest images, because
        # a few images of one foreign kind are near one another.
        order = np.argsort(-columns["mahalanobis"], kind="stable")[:_LISTED]
        print("far from the others (Mahalanobis distance of the representation):")
        for row in order:
            print(f"  {columns['mahalanobis'][row]:8.3f}  {printable(images.names[row])}")
    flagged = Counter(flag for text in columns["flags"] for flag in text.split("; ") if flag)
    shown = ", ".join(f"{number} {flag}" for flag, number in flagged.most_common())
    print(f"flags: {shown or 'none'}")
