"""Images with their indices, checked as they come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from influence_ssl.errors import InfluenceTypeError, InfluenceValueError

# To detect a data set that returns varying items, this many are read again, each this often. A flip
# with probability 1/2 is missed once in 65,536 times, a change with probability 1/5 once in 180.
_READ_AGAIN, _TIMES = 8, 3

Indices = Sequence[int] | np.ndarray | Tensor


class Dataset(Protocol):
    """A map-style data set whose items are tensors, or tuples that begin with a tensor."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


class Examples:
    """N images with their indices, read by row. Raises if an item cannot be scored."""

    def __init__(self, images: Tensor | Dataset, index: Indices | None) -> None:
        if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
            raise InfluenceTypeError(
                f"images is a {type(images).__name__}, which lacks a length or items by number; "
                "give a tensor (N, ...) or a map-style data set such as DataLoader.dataset."
            )
        self.n = len(images)
        if self.n == 0:
            raise InfluenceValueError("images is empty; there is nothing to score.")
        self.images = images
        self.index = (
            torch.arange(self.n, device="cpu")
            if index is None
            else torch.as_tensor(index, device="cpu").long()
        )
        if self.index.shape != (self.n,) or (self.index < 0).any():
            raise InfluenceValueError(f"index must hold {self.n} numbers ≥ 0, one per image.")
        self._shape: torch.Size | None = None
        self.values = self.batch(range(1))[0].numel()  # per image
        if not isinstance(images, Tensor):
            self._refuse_random()

    def first(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """The examples that are checked: the first two, or the only one, with their indices."""
        rows = range(min(2, self.n))
        return self.batch(rows), self.index[list(rows)]

    def _refuse_random(self) -> None:
        spread = sorted({round(i) for i in np.linspace(0, self.n - 1, _READ_AGAIN)})
        for i in spread:
            once, *again = (self.batch(range(i, i + 1)) for _ in range(_TIMES))
            if not all(all(map(torch.equal, once, other)) for other in again):
                raise InfluenceValueError(
                    f"images is random: item {i} differs each time it is read; use the evaluation "
                    "transform instead of the training augmentation."
                )

    def batch(self, rows: range) -> tuple[Tensor, ...]:
        """The items of these rows, stacked, with the images first."""
        if isinstance(self.images, Tensor):
            self._check(self.images[rows.start : rows.stop], rows)
            return (self.images[rows.start : rows.stop],)
        read = getattr(self.images, "__getitems__", None)  # a data set that reads several at once
        found = read(list(rows)) if read else (self.images[i] for i in rows)
        items = [self._item(i, item) for i, item in zip(rows, found, strict=True)]
        return tuple(torch.stack(list(column)) for column in zip(*items, strict=True))

    def _item(self, i: int, item: Any) -> tuple[Tensor, ...]:
        item = tuple(item) if isinstance(item, tuple | list) else (item,)
        if not item or not isinstance(item[0], Tensor):
            raise InfluenceTypeError(
                f"item {i} of images does not begin with a tensor: {item!r:.60}; return the image "
                "as a tensor, first in the item."
            )
        if self._shape is None:
            self._shape = item[0].shape
        if item[0].shape != self._shape:
            raise InfluenceValueError(
                f"image {i} has shape {tuple(item[0].shape)}, but earlier images have shape "
                f"{tuple(self._shape)}; resize all images to one shape."
            )
        self._check(item[0][None], range(i, i + 1))
        # An objective has no use for what is not a number, such as a path.
        kinds = Tensor, int, float, np.number, np.bool_, np.ndarray
        rest = (torch.as_tensor(x) for x in item[1:] if isinstance(x, kinds))
        return (item[0], *rest)

    def _check(self, images: Tensor, rows: range) -> None:
        if not images.is_floating_point():
            raise InfluenceTypeError(
                f"images are {images.dtype}; convert them to the floating-point values that the "
                "encoder expects, for instance images.float() / 255."
            )
        bad = ~images.isfinite().flatten(1).all(1)
        if bad.any():
            i = rows[int(bad.nonzero()[0])]
            raise InfluenceValueError(f"image {i} has NaN or infinite values; repair or drop it.")
