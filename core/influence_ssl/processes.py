"""Several processes as one: ``torchrun`` starts them, ``init_process_group`` joins them.

With Gloo on CPUs or NCCL on one card each; without a process group all of this is for one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from influence_ssl.errors import InfluenceError

T = TypeVar("T")


def place() -> tuple[int, int]:
    """Which process this is, from 0, and how many there are."""
    joined = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)


class PeerError(InfluenceError):
    """Another process of the group stopped with an error."""


def agree(error: Exception | None = None) -> None:
    """Tell the other processes that this one goes on, or with which error it stops.

    Every exchange below begins with it, and so does the end of a process that stops: without it
    the others would wait for this process until they time out. Raises :class:`PeerError` in those
    that would have gone on.
    """
    found: list[str | None] = [None] * place()[1]
    if len(found) > 1:
        said = None if error is None else f"{type(error).__name__}: {' '.join(str(error).split())}"
        dist.all_gather_object(found, said)
        stopped = next((rank for rank, words in enumerate(found) if words is not None), None)
        if error is None and stopped is not None:
            raise PeerError(f"process {stopped} stopped: {found[stopped]}")


@contextmanager
def together() -> Iterator[None]:
    """A part of the work that all processes do: where one of them fails, all of them stop."""
    try:
        yield
    except PeerError:
        raise
    except Exception as error:
        agree(error)
        raise


def total(x: Tensor) -> Tensor:
    """``x`` replaced by its sum over all processes; without a gradient."""
    if place()[1] > 1:
        agree()
        dist.all_reduce(x)
    return x


def first(x: Tensor) -> Tensor:
    """``x`` of the first process, in every process."""
    if place()[1] > 1:
        agree()
        x = x.contiguous()
        dist.broadcast(x, 0)
    return x


def everyone(value: T) -> list[T]:
    """The values of all processes, in their order, in every process."""
    found = [value] * place()[1]
    if len(found) > 1:
        agree()
        dist.all_gather_object(found, value)
    return found


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order, in every process; their numbers may differ."""
    parts = everyone(rows.cpu()) if place()[1] > 1 else [rows]
    return torch.cat(parts).to(rows.device)
