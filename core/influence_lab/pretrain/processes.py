"""A batch split over several processes, with the result of a single process.

``torchrun`` starts them, on one machine or with a shared file system. Every process draws the views
of the whole batch from the same generator and trains on its own part; batch normalisation takes its
statistics from the whole batch, contrastive losses use all of it, and gradients are averaged.
Only rounding differs, because sums are formed in another order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from influence_ssl.processes import place, total


@contextmanager
def processes(device: str | torch.device) -> Iterator[torch.device]:
    """Join the other processes if ``torchrun`` started this one; returns the training device.

    NCCL and one card per process on ``cuda``, else Gloo.
    """
    device = torch.device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def count() -> int:
    """The number of processes that train together."""
    return place()[1]


def rank() -> int:
    """The rank of this process; process 0 writes."""
    return place()[0]


def part(whole: Tensor) -> Tensor:
    """This process's rows of a batch."""
    return whole.chunk(count())[rank()]


class _Sum(torch.autograd.Function):
    """The sum over all processes, of the values and of the gradients that come back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient.clone(memory_format=torch.contiguous_format))


def gather(rows: Float[Tensor, "b k"]) -> Float[Tensor, "all k"]:
    """The rows of all processes, in the order of the batch; gradients flow back to each."""
    before, after = rank() * len(rows), (count() - 1 - rank()) * len(rows)
    return rows if count() == 1 else _Sum.apply(F.pad(rows, (0, 0, before, after)))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes, in one message."""
    if count() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = total(torch.cat([g.flatten() for g in gradients])) / count()
    for old, new in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        old.copy_(new.view_as(old))


class WholeBatchNorm(_BatchNorm):
    """Batch normalisation by the statistics of all processes' rows, on any device.

    ``torch.nn.SyncBatchNorm`` is faster and for accelerators only.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """The same as in one process with the whole batch, up to rounding."""
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        n = x.numel() // x.shape[1] * count()
        values = x.float() if x.dtype == torch.bfloat16 else x
        mean = _Sum.apply(values.sum(axes)) / n
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / n
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of axes."""


def share_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` with batch normalisation over all processes and unchanged weight names."""
    if count() == 1:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.__class__ = WholeBatchNorm
    return module
