"""φ of a set of images, in memory or in files of the store, read block by block."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from influence_ssl._memory import free_memory
from influence_ssl.errors import InfluenceOSError, InfluenceValueError
from influence_ssl.processes import everyone

HALVES = torch.float16, torch.bfloat16
# Rounding to bfloat16 changes a number by half a percent at most.
_ROUNDING = 0.01


@dataclass(frozen=True, eq=False)
class Embedded:
    """φ of images, with their indices and names; ``signs`` of the products if H is indefinite.

    ``parts`` holds φ (draws, n_p, m) of each process in turn, every draw divided by √draws.
    """

    parts: list[Float[Tensor, "draws n_p m"]]
    index: Int64[np.ndarray, " n"]
    names: Sequence[str] | None
    signs: Float64[Tensor, " m"] | None

    def blocks(self, rows: int) -> Iterator[Float[Tensor, "b dm"]]:
        """φ in blocks of images, the draws concatenated."""
        for part in self.parts:
            for some in part.split(rows, dim=1):
                yield some.transpose(0, 1).flatten(1)

    @property
    def phi(self) -> Float[Tensor, "n dm"]:
        """φ of all images, the draws concatenated."""
        found = list(self.blocks(len(self.index)))
        return found[0] if len(found) == 1 else torch.cat(found)

    @property
    def bytes(self) -> int:
        """The size of φ in bytes."""
        return sum(part.numel() * part.element_size() for part in self.parts)


class Room:
    """Collects φ of one process's images, draw by draw, and returns φ of all processes.

    ``images``: their number, and ``all_images`` the number over all processes. ``dtype``: the type
    to which φ is rounded, or ``None`` for no rounding. ``folder``: the store that holds φ instead
    of memory. Raises :class:`InfluenceError` if there is not enough space.
    """

    def __init__(
        self, images: int, all_images: int, draws: int, dtype: torch.dtype | None,
        folder: Path | None,
    ) -> None:  # fmt: skip
        self.images, self.all_images, self.draws = images, all_images, draws
        self.dtype, self.folder = dtype, folder
        self._found: list[Tensor] = []
        self._held: list[Tensor] = []  # whether a rounded part is still φ
        self._path: Path | None = None
        self._like: Tensor | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(".part", "phi-", folder)
            os.close(number)
            self._path = Path(name)
            self._gone = weakref.finalize(self, self._path.unlink, missing_ok=True)

    def add(self, phi: Float[Tensor, "b m"]) -> None:
        """Add φ of the next images."""
        kept = phi if self.dtype is None else self._rounded(phi, self.dtype)
        if self._like is None:
            self._like = kept[:0]
            self._refuse_too_large(kept)
        if self._path is None:
            self._found.append(kept)
            return
        content = kept.detach().cpu().contiguous().flatten().view(torch.uint8)
        try:
            with self._path.open("ab") as file:
                file.write(content.numpy().tobytes())
        except OSError as error:
            raise InfluenceOSError(
                f"store {str(self.folder)!r}: φ cannot be written: {error.strerror}."
            ) from error

    def embedded(
        self,
        index: Int64[np.ndarray, " n"],
        names: Sequence[str] | None,
        signs: Float64[Tensor, " m"] | None,
    ) -> Embedded:
        """φ of all processes' images; a file is mapped into memory and removed with the result."""
        assert self._like is not None
        # Asked once, at the end, because each answer waits for the device.
        if self._held and not torch.stack(self._held).all():
            raise InfluenceValueError(
                f"keep={self.dtype}: φ of some images exceeds its range; use keep=torch.bfloat16 "
                "or keep=True."
            )
        shape = self.draws, self.images, self._like.shape[1]
        if self._path is None:
            mine = torch.cat(self._found).view(shape)
            parts = everyone(mine.cpu()) if self.all_images > self.images else [mine]
            return Embedded([part.to(mine.device) for part in parts], index, names, signs)
        parts = [_mapped(*x, self._like.dtype) for x in everyone((self._path, shape))]
        everyone(None)  # no file may go before all have mapped it
        found = Embedded(parts, index, names, signs)
        self._gone.detach()
        weakref.finalize(found, self._path.unlink, missing_ok=True)
        return found

    def _rounded(self, phi: Tensor, dtype: torch.dtype) -> Tensor:
        kept = phi.to(dtype)
        error = (kept.to(phi.dtype) - phi).norm(dim=1)
        self._held.append((error <= _ROUNDING * phi.norm(dim=1)).all())
        return kept

    def _refuse_too_large(self, like: Tensor) -> None:
        """Raise if φ does not fit into half of the free memory, or onto the store's disk."""
        every = self.all_images if self._path is None else self.images
        needed = every * self.draws * like.shape[1] * like.element_size()
        what = f"the embeddings of {every} images take {needed / 1e9:.1f} GB"
        if self.folder is None:
            free = free_memory(like.device)
            if needed > free / 2:
                raise InfluenceValueError(
                    f"{what}, more than half of the {free / 1e9:.1f} GB that are free; use fewer "
                    "images or draws, a lower rank, keep=torch.float16, or a store."
                )
        elif needed > (free := shutil.disk_usage(self.folder).free):
            raise InfluenceOSError(
                f"{what}, but only {free / 1e9:.1f} GB are free in store {str(self.folder)!r}; use "
                "another folder, a lower rank, or keep=torch.float16."
            )


def _mapped(path: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    if not path.is_file():
        raise InfluenceOSError(
            f"store {str(path.parent)!r} lacks {path.name}, which another process wrote; give a "
            "folder that all processes can access."
        )
    count = shape[0] * shape[1] * shape[2]
    return torch.from_file(str(path), shared=False, size=count, dtype=dtype).view(shape)
