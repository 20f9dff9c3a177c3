"""Scores images and writes the scores with their alternatives."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from influence_ssl._state import state_of
from influence_ssl._store import fingerprint, variables
from influence_ssl.analysis.duplicates import Group, duplicate_groups
from influence_ssl.analysis.neighbours import forecast, nearest, unit
from influence_ssl.analysis.reliability import reliability
from influence_ssl.command import embeddings, settings
from influence_ssl.command.options import partial_folder
from influence_ssl.command.summary import size, summarise
from influence_ssl.encoders.loading import load_encoder, source_code
from influence_ssl.errors import InfluenceError, InfluenceOSError, InfluenceValueError, described
from influence_ssl.files.looks import Looks
from influence_ssl.files.sources import refuse_overwriting
from influence_ssl.objectives import Invariance
from influence_ssl.provenance import made_with
from influence_ssl.scorer import InfluenceScorer
from influence_ssl.scores import Scores

if TYPE_CHECKING:
    import pandas

    from influence_ssl.files.images import ImageFiles

ZOOS = ("timm:", "torchvision:", "builtin:")
# On gradients; the device has a place of its own in the key.
_WITHOUT_EFFECT = (
    "run", "command", "traceback", "strict", "out", "device", "keep", "workers",
)  # fmt: skip
_NOT_THE_ENCODER = (OSError, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True, eq=False)
class Scored(Scores):
    """Scores with all the columns that the command writes."""

    columns: dict[str, Any] | None = None

    def to_pandas(self) -> pandas.DataFrame:
        """The columns of a score file, in their order."""
        table = super().to_pandas()
        for name, values in (self.columns or {}).items():
            table[name] = values
        first = ["index", "name", "sha256"]
        return table[first + [name for name in table if name not in first]]


def score(options: argparse.Namespace) -> None:
    """Run the command; raises :class:`InfluenceError` and keeps finished work if interrupted."""
    # Refuse everything that can be refused before the long work.
    perturbation, curvature = settings.perturbation(options), settings.curvature(options)
    device = settings.device(options.device)
    refuse_overwriting("--out", options.out, [options.data, Path(options.weights or ".")])
    settings.check_output(options.out)
    settings.refuse_other_results(options.out, settings.SCORES)
    if options.keep is not None:
        inputs = [options.data, Path(options.weights or "."), options.out]
        refuse_overwriting("--keep", options.keep, inputs)
        embeddings.refuse(options.keep, options.out)
    loaded = load_encoder(options.encoder, options.weights, options.seed, options.weights_part)

    from influence_ssl.files.images import ImageFiles

    # Pillow warns of odd metadata; what makes an image unreadable is an error and gets listed.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    started, progress = time.monotonic(), sys.stderr.isatty()
    listed = ImageFiles(options.data, loaded.preprocess)
    images = listed.readable(options.strict, progress, options.workers)
    _refuse_too_few(images)
    objective = Invariance(perturbation)
    store = partial_folder(options.out) / _key(options, loaded.module, objective, images, device)
    scorer = InfluenceScorer(
        loaded.module,
        objective,
        curvature,
        draws=options.draws,
        seed=options.seed,
        batch_size=options.batch_size,
        device=device,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        layers=None if options.layers is None else options.layers.split(","),
        progress=progress,
        store=store,
        workers=options.workers,
    )
    _make(store)
    try:
        scores = scorer.score(images, images.index.tolist(), images.names, representations=True)
        if options.keep is not None:
            # This pass reuses what the pass above left in the store.
            scorer.fit(images, images.index.tolist(), images.names, keep=True)
    except BaseException as error:
        begun = not _remove_if_empty(store, store.parent)
        if isinstance(error, InfluenceError):
            raise InfluenceError(with_names(str(error), images.index, images.names)) from error
        if begun or not isinstance(error, Exception) or isinstance(error, _NOT_THE_ENCODER):
            raise
        raise InfluenceValueError(
            f"the encoder fails on the first images ({size(images)}): {described(error)}; if it "
            "needs another size, let its function return (module, preprocess); --traceback shows "
            "where."
        ) from error
    if not np.isfinite(scores.values).all():
        first = images.names[int(np.flatnonzero(~np.isfinite(scores.values))[0])]
        raise InfluenceValueError(
            f"the score of {first!r} is not finite; try --dtype float64 or a larger --damping."
        )
    assert scores.representations is not None
    assert scores.per_draw is not None
    z = torch.from_numpy(scores.representations).to(scores.provenance["device"])
    # Three searches for the groups, one for the nearest image.
    slow = forecast(z, 4)
    if slow is not None:
        print(slow, flush=True)
    groups = duplicate_groups(z, images, progress)
    stable = reliability(scores.per_draw)
    scores.provenance.update(
        _provenance(options, images),
        untrained=loaded.untrained,
        reliability=stable,
        **{"duplicate groups": [group._asdict() for group in groups]},
        **({"weights part": loaded.part} if loaded.part else {}),
        **({"weights left": list(loaded.left)} if loaded.left else {}),
    )
    if options.keep is not None:
        embeddings.write(
            options.keep, scorer, images, scores.representations,
            scores.provenance["arguments"], loaded.untrained, scores.values,
        )  # fmt: skip
        del scorer.fit_  # its φ lies in the store, which goes at the end
    columns = _columns(scores, images, z, groups)
    # What a file of scores holds are the columns; representations are large, and made again.
    Scored(**vars(replace(scores, representations=None)), columns=columns).save(options.out)
    shutil.rmtree(store, ignore_errors=True)
    _remove_if_empty(store.parent)
    summarise(scores, images, options, time.monotonic() - started, groups)
    if loaded.limits:
        print(f"note: {loaded.limits}")


def _columns(scores: Scores, images: ImageFiles, z: Tensor, groups: list[Group]) -> dict[str, Any]:
    n = len(scores)
    rank = np.empty(n, np.int64)
    rank[scores.order("highest")] = np.arange(1, n + 1)
    neighbours = nearest(unit(z))
    group: list[int | None] = [None] * n
    for number, found in enumerate(groups, 1):
        for member in found.members:
            group[member] = number
    looks = zip(*images.looks, strict=True)
    columns: dict[str, Any] = {
        "sha256": list(images.sha256),
        "rank": rank,
        "percentile": 100 * (n - rank) / (n - 1),
        "loss": scores.loss,
        "gradient_norm": scores.gradient_norm,
        "nearest": [images.names[i] for i in neighbours.place[:, 0]],
        "similarity": neighbours.similarity[:, 0].astype(np.float64),
        **{name: list(column) for name, column in zip(Looks._fields, looks, strict=True)},
    }
    if importlib.util.find_spec("pandas") is not None:
        import pandas

        columns["duplicate_group"] = pandas.array(group, dtype="Int64")
    return columns


def _refuse_too_few(images: ImageFiles) -> None:
    if len(images) < 2:
        raise InfluenceValueError(
            f"{str(images.source)!r} holds one readable image; scores compare images, so give at "
            "least two."
        )
    # Thumbnails are quick to compare; all pixels are read only if they agree.
    if all((other == images.thumbnails[0]).all() for other in images.thumbnails) and all(
        torch.equal(images[0][0], images[i][0]) for i in range(1, len(images))
    ):
        raise InfluenceValueError(
            f"all {len(images)} images in {str(images.source)!r} are copies of "
            f"{images.names[0]!r}; scores compare images, so give different ones."
        )


def _key(
    options: argparse.Namespace,
    encoder: nn.Module,
    objective: Invariance,
    images: ImageFiles,
    device: torch.device | None,
) -> str:
    """A key for everything that the gradients depend on."""
    given = {
        name: str(value) for name, value in vars(options).items() if name not in _WITHOUT_EFFECT
    }
    content = hashlib.sha256(json.dumps([given, str(device), made_with()["versions"]]).encode())
    content.update(fingerprint(encoder).encode())
    # Code and what it uses may have changed between two runs of the same command.
    content.update(state_of(objective).encode())
    content.update(json.dumps(sorted(variables(encoder, objective).items())).encode())
    for part in (options.encoder, options.perturbation):
        if part is not None and not part.startswith(ZOOS):
            content.update(source_code(part))
    content.update(_digest(images).encode())
    content.update(_bytes(images[0][0]))
    return content.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _make(store: Path) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfluenceOSError(
            f"{str(store)!r}, for unfinished work, cannot be created: {error.strerror}."
        ) from error


def _remove_if_empty(*folders: Path) -> bool:
    """Remove the folders up to one that is not empty; whether the first one was removed."""
    for number, folder in enumerate(folders):
        try:
            folder.rmdir()
        except OSError:
            return number > 0
    return True


def _digest(images: ImageFiles) -> str:
    lines = (f"{x} {name}\n" for name, x in zip(images.names, images.sha256, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _provenance(options: argparse.Namespace, images: ImageFiles) -> dict[str, Any]:
    found: dict[str, Any] = {
        "arguments": {
            name.replace("_", "-"): value if isinstance(value, int | float) else str(value)
            for name, value in vars(options).items()
            if value is not None and name not in ("run", "command", "traceback")
        },
        "data": {
            "source": str(images.source),
            "images": len(images),
            "shape": list(images.shape or ()),
            "sha256": _digest(images),
            "skipped": [list(skipped) for skipped in images.skipped],
            "other files": images.ignored,
            "converted": images.converted,
            "EXIF rotation not applied": images.rotated,
        },
    }
    if options.weights not in (None, "pretrained"):
        found["weights sha256"] = hashlib.sha256(Path(options.weights).read_bytes()).hexdigest()
    return found


def with_names(message: str, index: Tensor, names: Sequence[str]) -> str:
    """Replace image indices in a message by paths, by which users know their images."""
    known = dict(zip(index.tolist(), names, strict=True))
    return re.sub(r"\bimage (\d+)\b", lambda m: f"image {known.get(int(m[1]), m[1])!r}", message)
