"""Several processes as one: ``torchrun`` starts them, ``init_process_group`` joins them.

With Gloo on CPUs or NCCL on one card each; without a process group all of this is for one process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def place() -> tuple[int, int]:
    """Which process this is, from 0, and how many there are."""
    joined = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)


def total(x: Tensor) -> Tensor:
    """``x`` replaced by its sum over all processes; without a gradient."""
    if place()[1] > 1:
        dist.all_reduce(x)
    return x


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order, in every process; their numbers may differ."""
    parts = [rows] * place()[1]
    if len(parts) > 1:
        dist.all_gather_object(parts, rows.cpu())
    return torch.cat(parts).to(rows.device)
