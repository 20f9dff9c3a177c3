"""Work shared among processes that ``torchrun`` starts and ``init_process_group`` joins.

They communicate through Gloo on CPUs, or through NCCL with one card per process. Without a process
group, everything runs in one process.
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
    """The rank of this process, from 0, and the number of processes."""
    joined = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)


class PeerError(InfluenceError):
    """Another process of the group stopped with an error."""


def agree(error: Exception | None = None) -> None:
    """Tell the other processes that this one continues, or with which error it stops.

    Every exchange below begins with this call, and a process that stops makes it last; otherwise
    the others would wait until they time out. Raises :class:`PeerError` in the processes that would
    have continued.
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
    """A part of the work that all processes share; if one of them fails, all of them stop."""
    try:
        yield
    except PeerError:
        raise
    except Exception as error:
        agree(error)
        raise


def total(x: Tensor) -> Tensor:
    """Replace ``x`` by its sum over all processes; no gradient flows through it."""
    if place()[1] > 1:
        agree()
        dist.all_reduce(x)
    return x


def first(x: Tensor) -> Tensor:
    """The first process's ``x``, in every process."""
    if place()[1] > 1:
        agree()
        x = x.contiguous()
        dist.broadcast(x, 0)
    return x


def everyone(value: T) -> list[T]:
    """The values of all processes, in rank order, in every process."""
    found = [value] * place()[1]
    if len(found) > 1:
        agree()
        dist.all_gather_object(found, value)
    return found


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in rank order, in every process; row counts may differ."""
    parts = everyone(rows.cpu()) if place()[1] > 1 else [rows]
    return torch.cat(parts).to(rows.device)
