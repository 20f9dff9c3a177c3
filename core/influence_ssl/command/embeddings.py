"""The folder that ``influence-ssl score --keep`` writes and ``trace`` reads."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from safetensors.torch import load, save
from torch import nn

from influence_ssl.analysis.trace import Seen
from influence_ssl.errors import (
    InfluenceError,
    InfluenceOSError,
    InfluenceValueError,
    described,
)
from influence_ssl.files.images import ImageFiles
from influence_ssl.files.writing import replacing_folder
from influence_ssl.objectives import Objective
from influence_ssl.scorer import InfluenceScorer

_FORMAT = 2
_WORDS, _TENSORS, _FIT = "images.json", "images.safetensors", "fit.json"
# What desktops put into any folder, and put there again.
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
_WRITTEN = {_WORDS, _TENSORS, _FIT, "fit.safetensors", *_LITTER}


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What the folder holds besides the fit: the images, and how they were scored."""

    folder: Path
    seen: Seen
    shape: tuple[int, ...]
    source: str
    arguments: dict[str, Any]
    untrained: bool
    scores: Float64[np.ndarray, " n"]
    bits: int | None

    def scorer(
        self,
        encoder: nn.Module,
        objective: Objective | None,
        batch_size: int | None,
        device: torch.device | None,
        progress: bool,
        workers: int | None = None,
    ) -> InfluenceScorer:
        """The fitted scorer; raises :class:`InfluenceError` if the encoder is a different one."""
        return InfluenceScorer.load(
            self.folder, encoder, objective, None, batch_size, device, progress, workers
        )


def refuse(folder: Path, out: Path) -> None:
    """Raise before the work if ``--keep`` cannot be written; ``out`` is the file of scores."""
    named, target = f"--keep {str(folder)!r}", folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise InfluenceOSError(f"{named} is a file; name a folder.")
    _refuse_foreign(folder)
    if target in out.resolve().parents:
        raise InfluenceOSError(
            f"{named} is replaced as a whole, and so cannot hold --out {str(out)!r}; write one of "
            "them elsewhere."
        )
    parent = target.parent if folder.is_symlink() else folder.parent
    if not parent.is_dir():
        raise InfluenceOSError(f"{named}: {str(parent)!r} is not a folder; create it.")
    try:
        tempfile.NamedTemporaryFile(dir=parent).close()
    except OSError as error:
        raise InfluenceOSError(
            f"{named} cannot be written: {error.strerror}; choose another folder."
        ) from error


def _refuse_foreign(folder: Path) -> None:
    """Raise if the folder holds anything but earlier embeddings, because it is replaced whole."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = names - (_WRITTEN if {_WORDS, _FIT} <= names else _LITTER)
    if foreign:
        raise InfluenceOSError(
            f"--keep {str(folder)!r} holds {min(foreign)!r}, which would be deleted because "
            "score --keep did not write it; name another folder, or move it away."
        )


def write(
    folder: Path,
    scorer: InfluenceScorer,
    images: ImageFiles,
    representations: Float[np.ndarray, "n d"],
    arguments: dict[str, Any],
    untrained: bool,
    scores: Float64[np.ndarray, " n"],
) -> None:
    """Write the fit of ``scorer`` and the data of its images, whole or not at all."""
    content = save(
        {
            "representations": torch.from_numpy(representations),
            "thumbnails": torch.from_numpy(images.thumbnails),
            "scores": torch.from_numpy(scores),
        }
    )
    # Files may have been added during the hours since the start.
    _refuse_foreign(folder)
    with replacing_folder(folder.resolve()) as temporary:
        scorer.save(temporary)
        words = {
            "format": _FORMAT,
            "fit": _sha256((temporary / _FIT).read_bytes()),
            "tensors": _sha256(content),
            "source": str(images.source),
            "shape": list(images.shape or ()),
            "arguments": arguments,
            "untrained": untrained,
            "pixels": list(images.pixels),
            "bits": images.bits,
        }
        (temporary / _TENSORS).write_bytes(content)
        (temporary / _WORDS).write_text(json.dumps(words, indent=1), encoding="utf-8")


def read(folder: Path) -> Embeddings:
    """Read the folder; raises :class:`InfluenceError` if it is damaged or something else."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InfluenceOSError(
            f"{str(folder)!r} {what}; give the folder that influence-ssl score --keep wrote."
        )
    if not (folder / _WORDS).is_file():
        raise InfluenceOSError(
            f"{str(folder)!r} holds no kept embeddings; create them with influence-ssl score "
            "--keep FOLDER."
        )
    again = f"{str(folder)!r} is damaged; create it again with influence-ssl score --keep"
    try:
        words = json.loads((folder / _WORDS).read_text(encoding="utf-8"))
        content, fit = (folder / _TENSORS).read_bytes(), (folder / _FIT).read_bytes()
        if words["format"] != _FORMAT:
            raise InfluenceValueError(
                f"{str(folder)!r} was written in format {words['format']!r}, but this version "
                f"reads {_FORMAT}; score again."
            )
        if (words["fit"], words["tensors"]) != (_sha256(fit), _sha256(content)):
            raise InfluenceValueError(f"{again}.")
        tensors = load(content)
        seen = Seen(
            tensors["representations"].numpy(), tensors["thumbnails"].numpy(), words["pixels"]
        )
        return Embeddings(
            folder, seen, tuple(words["shape"]), words["source"], words["arguments"],
            words["untrained"], tensors["scores"].numpy(), words["bits"],
        )  # fmt: skip
    except OSError as error:
        raise InfluenceOSError(f"{again} ({error.strerror or error}).") from error
    except InfluenceError:
        raise
    # Modified words may fail in any way.
    except Exception as error:
        raise InfluenceValueError(f"{again} ({described(error)}).") from error


def representations(
    folder: Path,
) -> tuple[list[str], Float[np.ndarray, "n d"], Float64[np.ndarray, " n"]]:
    """The names of the kept images, f(x) (N, d), and the scores, which tell the run."""
    kept = read(folder)
    fit = json.loads((folder / _FIT).read_text(encoding="utf-8"))
    return fit["kept"]["names"], kept.seen.representations, kept.scores


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
