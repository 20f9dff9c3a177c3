"""Costs in the unit of the book: one plain forward and backward pass, in the faster layout.

The unit is :func:`plain_pass` over the same pairs, with the same batch size, data type and device.
It is timed in both memory layouts that PyTorch offers, next to the work that is measured in it. The
layout with the lower median over rounds is the unit, and each round yields one ratio.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from influence_ssl import GaussianNoise

WARM_UP = 1
SLOW = 2.5
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
WIDEST_REGISTER = 16  # numbers in float32

Job = Callable[[], object]


def pairs_of(images: Tensor, batch_size: int) -> list[Tensor]:
    """Each batch followed by its perturbed copy, prepared so that the plain pass draws no noise."""
    noise = GaussianNoise()
    return [
        torch.cat([images[index], noise(images[index], index, 0, 0)])
        for index in torch.arange(len(images)).split(batch_size)
    ]


def plain_pass(encoder: nn.Module, pairs: Sequence[Tensor]) -> None:
    """Forward and backward with all weight gradients over ready-made pairs, batch by batch.

    It runs in eval mode, like scoring; a pass in train mode takes longer.
    """
    encoder.eval()
    for pair in pairs:
        encoder.zero_grad(set_to_none=True)
        z, z_hat = encoder(pair).chunk(2)
        (1 - torch.cosine_similarity(z, z_hat)).sum().backward()
    encoder.zero_grad(set_to_none=True)


def layouts_of(encoder: nn.Module) -> list[str]:
    """The layouts in which the encoder's weight gradients are safe to compute.

    In channels-last the gradient of a strided 1 x 1 convolution with fewer input channels than a
    vector register holds overwrites foreign memory (oneDNN issue 6035).
    """
    unsafe = any(
        isinstance(module, nn.Conv2d)
        and module.in_channels < WIDEST_REGISTER
        and math.prod(module.kernel_size) == 1 < math.prod(module.stride)
        for module in encoder.modules()
    )
    return ["contiguous"] if unsafe else list(LAYOUTS)


def in_layout(
    name: str, encoder: nn.Module, images: Sequence[Tensor]
) -> tuple[nn.Module, list[Tensor]]:
    """A copy of the encoder and the images, both in one of the :data:`LAYOUTS`."""
    layout = LAYOUTS[name]
    return (
        copy.deepcopy(encoder).to(memory_format=layout),
        [batch.contiguous(memory_format=layout) for batch in images],
    )


def plain_passes(encoder: nn.Module, pairs: Sequence[Tensor]) -> dict[str, Job]:
    """The plain pass in each layout of the weights and of the pairs."""
    found: dict[str, Job] = {}
    for name in layouts_of(encoder):
        own, ordered = in_layout(name, encoder, pairs)
        found[name] = partial(plain_pass, own.requires_grad_(), ordered)
    return found


@dataclass(frozen=True)
class Timed:
    """Seconds of the plain passes and of the jobs, by each clock, with derived quantities."""

    layouts: tuple[str, ...]
    plain: dict[str, Float64[np.ndarray, "rounds layouts"]]
    jobs: dict[str, Float64[np.ndarray, "rounds jobs"]]

    def layout(self, clock: str) -> str:
        """The faster layout by this clock."""
        return self.layouts[int(np.median(self.plain[clock], 0).argmin())]

    def unit(self, clock: str) -> Float64[np.ndarray, " rounds"]:
        """Seconds of the plain pass in the faster layout."""
        return self.plain[clock][:, self.layouts.index(self.layout(clock))]

    def and_then(self, later: Timed) -> Timed:
        """The rounds of both."""
        plain, jobs = (
            {clock: np.concatenate([one[clock], other[clock]]) for clock in one}
            for one, other in ((self.plain, later.plain), (self.jobs, later.jobs))
        )
        return Timed(self.layouts, plain, jobs)

    def ratios(self, clock: str) -> Float64[np.ndarray, "rounds jobs"]:
        """Each job relative to the unit of its round."""
        return self.jobs[clock] / self.unit(clock)[:, None]


def timed(units: Mapping[str, Job], jobs: Sequence[Job], rounds: int, warm_up: int = 0) -> Timed:
    """Time ``jobs`` beside the plain passes ``units``, after ``warm_up`` rounds that do not count.

    All are timed in turn, alternately in one order and the reverse. On a shared machine, use
    processor time.
    """
    work = (*units.values(), *jobs)
    found = {clock: np.zeros((warm_up + rounds, len(work))) for clock in CLOCKS}
    for number in range(warm_up + rounds):
        order = range(len(work)) if number % 2 else reversed(range(len(work)))
        for place in order:
            for clock, seconds in seconds_of(work[place]).items():
                found[clock][number, place] = seconds
    counted = {clock: rows[warm_up:] for clock, rows in found.items()}
    return Timed(
        tuple(units),
        {clock: rows[:, : len(units)] for clock, rows in counted.items()},
        {clock: rows[:, len(units) :] for clock, rows in counted.items()},
    )


def seconds_of(work: Job) -> dict[str, float]:
    """Seconds that ``work`` takes, by each clock."""
    begin = {clock: read() for clock, read in CLOCKS.items()}
    work()
    return {clock: read() - begin[clock] for clock, read in CLOCKS.items()}


def ratios(
    work: Job, units: Mapping[str, Job], rounds: int, slow_rounds: int
) -> dict[str, list[float]]:
    """Ratios of ``work`` to the unit, one per round, after a warm-up round.

    If ``work`` takes longer than :data:`SLOW` units in the warm-up, that round counts as well, and
    there are ``slow_rounds`` in all.
    """
    found = timed(units, [work], WARM_UP)
    if max(float(found.ratios(clock).min()) for clock in CLOCKS) > SLOW:
        found = found.and_then(timed(units, [work], slow_rounds - WARM_UP))
    else:
        found = timed(units, [work], rounds)
    return {clock: found.ratios(clock)[:, 0].tolist() for clock in CLOCKS}


def summary(found: Mapping[str, Sequence[float]], clock: str = "cpu") -> dict[str, Any]:
    """Medians, the quartiles by one of the clocks, and the number of rounds."""
    return {
        **{clock: round(statistics.median(values), 4) for clock, values in found.items()},
        "quartiles": quartiles(found[clock]),
        "rounds": len(found[clock]),
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower and the upper quartile."""
    return np.quantile(values, (0.25, 0.75)).round(4).tolist()
