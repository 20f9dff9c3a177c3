"""Several processes as one: ``torchrun`` starts them, ``init_process_group`` joins them.

With Gloo on CPUs or NCCL on one card each; without a process group all of this is for one process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if count() > 1 else 0


def total(x: Tensor) -> Tensor:
    """``x`` replaced by its sum over all processes; without a gradient."""
    if count() > 1:
        dist.all_reduce(x)
    return x


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order, in every process; their numbers may differ."""
    if count() == 1:
        return rows
    parts: list[Tensor] = [rows] * count()
    dist.all_gather_object(parts, rows.cpu())
    return torch.cat(parts).to(rows.device)
