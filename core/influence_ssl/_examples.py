"""Images with their indices, checked as they come in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from influence_ssl.errors import InfluenceTypeError, InfluenceValueError

# To detect a data set that returns varying items, this many are read again, each this often. A flip
# with probability 1/2 is missed once in 65,536 times, a change with probability 1/5 once in 180.
_READ_AGAIN, _TIMES = 8, 3
_AT_ONCE = 1024  # images of a device that are checked at a time

Indices = Sequence[int] | np.ndarray | Tensor


class Dataset(Protocol):
    """A map-style data set whose items are tensors, or tuples that begin with a tensor.

    Optional: ``__getitems__(rows)`` reads several items; ``read_by_threads = True`` allows several
    threads to read at once; ``kept_batch(rows)`` returns several images as one tensor, or None
    where they would have to be read.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


class Examples:
    """N images with their indices, read by row. Raises if an item cannot be scored."""

    def __init__(self, images: Tensor | Dataset, index: Indices | None) -> None:
        if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
            raise InfluenceTypeError(
                f"images is a {type(images).__name__}, which lacks a length or items by number; "
                "give a tensor (N, ...) or a map-style data set such as DataLoader.dataset; if "
                "that is iterable only, list(dataset) is map-style."
            )
        if isinstance(images, Tensor) and images.ndim < 2:
            raise InfluenceValueError(
                f"images has shape {tuple(images.shape)}; give a tensor (N, ...), one row per "
                "image."
            )
        self.n = len(images)
        if self.n == 0:
            raise InfluenceValueError("images is empty; there is nothing to score.")
        self.images = images
        self.index = (
            torch.arange(self.n, device="cpu") if index is None else _integers(index, self.n)
        )
        self._shape: torch.Size | None = None
        one = self.batch(range(1))
        self.shape = one[0].shape[1:]  # per image
        self.values = one[0].numel()  # per image
        self.bytes = sum(part.numel() * part.element_size() for part in one)  # per item
        self.whole = isinstance(images, Tensor)
        self.in_memory = self.whole or self._kept(range(1)) is not None  # nothing is to be read
        # Whether several threads may read at once.
        self.threads = self.whole or getattr(images, "read_by_threads", False)
        if not isinstance(images, Tensor):
            self._refuse_random()
        elif images.device.type != "cpu":  # checked here, as each check waits for the device
            for start in range(0, self.n, _AT_ONCE):
                self._check(images[start : start + _AT_ONCE], range(start, self.n))

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
            found = self.images[rows.start : rows.stop]
            if found.device.type == "cpu":
                self._check(found, rows)
            return (found,)
        kept = self._kept(rows)
        batch = stacked(self._items(rows)) if kept is None else (kept,)
        self._check(batch[0], rows)
        return batch

    def _kept(self, rows: range) -> Tensor | None:
        """The images of these rows, if the data set has them in memory."""
        found: Tensor | None = getattr(self.images, "kept_batch", lambda rows: None)(rows)
        return found

    def _items(self, rows: range) -> list[tuple[Tensor, ...]]:
        """The items of these rows of a data set, one by one."""
        read = getattr(self.images, "__getitems__", None)  # a data set that reads several at once
        if read is None:
            return [self._item(i, self._read(i)) for i in rows]
        with _reading(f"items {rows.start} to {rows.stop - 1}"):
            found = read(list(rows))
        return [self._item(i, item) for i, item in zip(rows, found, strict=True)]

    def _read(self, i: int) -> Any:
        with _reading(f"item {i}"):
            return self.images[i]

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
        _refuse_integers(item[0])  # here, because a stack of mixed types is floating-point
        # An objective has no use for what is not a number, such as a path.
        kinds = Tensor, int, float, np.number, np.bool_, np.ndarray
        rest = (torch.as_tensor(x) for x in item[1:] if isinstance(x, kinds))
        return (item[0], *rest)

    def _check(self, images: Tensor, rows: range) -> None:
        _refuse_integers(images)
        # A sum shows a value that is not finite, in a fraction of the time. It may also overflow.
        if images.flatten(1).sum(1).isfinite().all():
            return
        bad = ~images.isfinite().flatten(1).all(1)
        if bad.any():
            i = rows[int(bad.nonzero()[0])]
            raise InfluenceValueError(f"image {i} has NaN or infinite values; repair or drop it.")


def _integers(index: Indices, n: int) -> Tensor:
    """The indices as int64. Raises unless they are n integers ≥ 0."""
    try:
        values = index if isinstance(index, Tensor) else np.asarray(index)
        # From a list, NumPy finds the type of a column of objects.
        found = np.array(values.tolist())
        numbers = found.dtype.kind in "iuf" and found.shape == (n,)
        if numbers and ((found >= 0) & (found < 2**63) & (found == np.floor(found))).all():
            return torch.from_numpy(found.astype(np.int64))
    except (TypeError, ValueError):  # rows of several lengths, or what is no array
        pass
    raise InfluenceValueError(
        f"index must hold {n} integers ≥ 0, one per image, instead of a mask, fractions or names; "
        "leave it out to have the images numbered."
    )


def _refuse_integers(images: Tensor) -> None:
    if not images.is_floating_point():
        raise InfluenceTypeError(
            f"images are {images.dtype}; convert them to the floating-point values that the "
            "encoder expects, for instance images.float() / 255."
        )


def stacked(items: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Items as columns, one row per item."""
    return tuple(torch.stack(list(column)) for column in zip(*items, strict=True))


def joined(batches: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Consecutive batches as one."""
    if len(batches) == 1:
        return batches[0]
    return tuple(torch.cat(list(column)) for column in zip(*batches, strict=True))


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Adds to an error of the data set which of its items it belongs to."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while reading {what} of images")
        raise
