"""Recorded results: small files under ``book/results`` that chapters read, each with provenance.

One folder per run, ``PROFILE/METHOD-SEED``: ``run.json`` (curves, accuracies, provenance),
``encoder.safetensors`` (the weights in float16; where ``run.json`` names the built-in encoder, the
file is that of ``influence_ssl``, so that it is tracked once) and ``scores-SPLIT.npz`` (ranks,
quantiles and provenance). A missing result is ``None``, and chapters show it as missing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt16
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from influence_lab.pretrain.resnets import STEMS, CifarResNet18, LargeResNet18
from influence_ssl import Scores
from influence_ssl.encoders import builtin
from influence_ssl.errors import InfluenceOSError, InfluenceValueError
from influence_ssl.files.writing import replacing
from influence_ssl.provenance import made_with
from influence_ssl.version import __version__

QUANTILES = 1025
LARGEST = 2**16
LARGEST_FIRST = ("paper", "gpu", "cpu", "tiny")


def results_root() -> Path:
    """``INFLUENCE_SSL_RESULTS``, or ``book/results`` of the source tree that this module is in."""
    if given := os.environ.get("INFLUENCE_SSL_RESULTS"):
        return Path(given)
    book = Path(__file__).resolve().parents[3] / "book"
    if not book.is_dir():
        raise InfluenceOSError(
            "no book/results beside this package; install it from a clone of the repository with "
            "pip install -e, or set INFLUENCE_SSL_RESULTS to the clone's book/results"
        )
    return book / "results"


def folder_of(profile: str, method: str, seed: int, root: Path | None = None) -> Path:
    """The folder with the results of one run."""
    return (results_root() if root is None else root) / profile / f"{method}-{seed}"


@cache
def code_version() -> str:
    """The commit of the source tree, with ``+changes`` if ``core`` differs.

    Where git does not know it: ``INFLUENCE_SSL_COMMIT``, or else the release.
    """
    here = Path(__file__).resolve().parents[2]
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("INFLUENCE_SSL_COMMIT") or __version__
    return commit[:12] + ("+changes" if changes else "")


def provenance(
    command: str,
    profile: str,
    seed: int,
    data: str,
    digest: str,
    device: str,
    seconds: float | None,
) -> dict[str, Any]:
    """What a reader needs to reproduce a result.

    ``digest`` is the SHA-256 of the data; ``seconds`` is ``None`` if not measured.
    """
    return {
        "command": command,
        "profile": profile,
        "seed": seed,
        "data": data,
        "data_sha256": digest,
        "code": code_version(),
        "device": device,
        **made_with(),
        "wall_seconds": None if seconds is None else round(seconds, 1),
    }


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` whole or not at all."""
    with replacing(path, parents=True) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_run(
    profile: str, method: str, seed: int, root: Path | None = None
) -> dict[str, Any] | None:
    """A run's record, or ``None`` if there is none."""
    return load_record(profile, f"{method}-{seed}/run", root)


def load_record(profile: str, name: str, root: Path | None = None) -> dict[str, Any] | None:
    """The record ``PROFILE/NAME.json`` (``baselines``, ``cost``), or ``None``."""
    path = (results_root() if root is None else root) / profile / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def largest_record(name: str, root: Path | None = None) -> tuple[str, dict[str, Any]] | None:
    """The largest profile with the record ``NAME.json``, and the record; ``None`` for none."""
    found = ((profile, load_record(profile, name, root)) for profile in LARGEST_FIRST)
    return next(((profile, record) for profile, record in found if record is not None), None)


def save_encoder(encoder: CifarResNet18, path: Path) -> None:
    """The encoder's weights and buffers in float16, its width and classes beside them."""
    state = {
        name: value.detach().cpu().half() if value.is_floating_point() else value.detach().cpu()
        for name, value in encoder.state_dict().items()
    }
    state = {name: value.contiguous() for name, value in state.items()}
    classes = 0 if encoder.fc is None else encoder.fc.out_features
    with replacing(path, parents=True) as temporary:
        save_file(state, temporary, {"width": str(encoder.width), "classes": str(classes)})


def weights_of(profile: str, method: str, seed: int, root: Path | None = None) -> Path:
    """The file with the weights of a recorded run, which may be missing."""
    own = folder_of(profile, method, seed, root) / "encoder.safetensors"
    if not own.is_file():  # A run that is recorded again has its own until it is packaged.
        run = load_run(profile, method, seed, root) or {}
        if run.get("encoder") == builtin.PREFIX + builtin.NAME:
            return builtin.WEIGHTS
    return own


def load_encoder(
    profile: str, method: str, seed: int, root: Path | None = None
) -> CifarResNet18 | None:
    """The recorded encoder of a run in float32 and eval mode, or ``None`` if there is none."""
    path = weights_of(profile, method, seed, root)
    if not path.is_file():
        return None
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise InfluenceValueError(
            f"{path}: not a safetensors file ({error}); restore it from the repository"
        ) from error
    stem, head = state.get("conv1.weight"), state.get("fc.weight")
    if stem is None:
        raise InfluenceValueError(f"{path}: has no conv1.weight, so it is not a ResNet-18")
    # The kernel of the stem distinguishes the two kinds.
    kind = STEMS["large" if stem.shape[-1] == LargeResNet18.STEM[0] else "cifar"]
    encoder = kind(len(stem), None if head is None else len(head))
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise InfluenceValueError(
            f"{path}: does not fit a CIFAR ResNet-18 of width {len(stem)} "
            f"({str(error).splitlines()[-1].strip()})"
        ) from error
    return encoder.eval()


@dataclass(frozen=True)
class RecordedScores:
    """Scores in their tracked form: the rank of each magnitude, and a table of quantiles.

    ``rank`` (N,): 0 is the lowest magnitude, ties by index; ``quantiles``: magnitudes at 1,025
    equally spaced ranks (or all N, where there are fewer), from the lowest to the highest.
    """

    rank: UInt16[np.ndarray, " n"]
    quantiles: Float64[np.ndarray, " q"]
    mean: float
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rank)

    @property
    def magnitude(self) -> Float64[np.ndarray, " n"]:
        """−I of each example, between quantiles by interpolation in the logarithm of the magnitude.

        The order is exact. If all magnitudes are positive, each value lies between its two
        neighbouring quantiles.
        """
        places = np.linspace(0, len(self.rank) - 1, len(self.quantiles))
        if (self.quantiles > 0).all():
            return np.exp(np.interp(self.rank, places, np.log(self.quantiles)))
        return np.interp(self.rank, places, self.quantiles)

    def order(self, which: str = "highest") -> Int64[np.ndarray, " n"]:
        """Indices by magnitude, ``"highest"`` or ``"lowest"`` first."""
        if which not in ("highest", "lowest"):
            raise InfluenceValueError(f"which={which!r}: expected 'highest' or 'lowest'")
        order = np.argsort(self.rank, kind="stable")
        return order[::-1].copy() if which == "highest" else order


def compress(scores: Scores, extra: dict[str, Any]) -> RecordedScores:
    """Ranks and quantiles of scores whose ``index`` is 0 … N − 1, N ≤ 65,536."""
    n = len(scores)
    if n > LARGEST or not np.array_equal(scores.index, np.arange(n)):
        raise InfluenceValueError(
            f"scores: {n} examples with index {scores.index[:3]}…; expected 0 … N − 1, "
            f"N ≤ {LARGEST}"
        )
    order = np.lexsort((np.arange(n), scores.magnitude))
    rank = np.empty(n, np.uint16)
    rank[order] = np.arange(n)
    ascending = scores.magnitude[order]
    places = np.linspace(0, n - 1, min(n, QUANTILES))
    quantiles = np.interp(places, np.arange(n), ascending)
    return RecordedScores(
        rank, quantiles, float(scores.magnitude.mean()), {**scores.provenance, **extra}
    )


def save_scores(recorded: RecordedScores, path: Path) -> None:
    """Write ranks (uint16), quantiles and provenance as one ``.npz``."""
    with replacing(path, parents=True) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            rank=recorded.rank,
            quantiles=recorded.quantiles,
            mean=np.float64(recorded.mean),
            provenance=np.array(json.dumps(recorded.provenance)),
        )


def scores_name(split: str, labels: bool = False) -> str:
    """The file of a run's scores on ``split``; ``labels``: those of the classifier's loss."""
    return f"scores-{split}-labels.npz" if labels else f"scores-{split}.npz"


def load_scores(
    profile: str,
    method: str,
    seed: int,
    split: str,
    root: Path | None = None,
    labels: bool = False,
) -> RecordedScores | None:
    """The recorded scores of a run on ``split`` (train or test), or ``None`` if there are none.

    ``labels``: the scores of the classifier's cross-entropy instead of the representation's.
    """
    path = folder_of(profile, method, seed, root) / scores_name(split, labels)
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as file:
        return RecordedScores(
            file["rank"],
            file["quantiles"],
            float(file["mean"]),
            json.loads(str(file["provenance"])),
        )


def device_name(device: torch.device | str) -> str:
    """The processor's or accelerator's name, for the provenance."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
