"""Costs in the unit of the book: one forward and backward pass with weight gradients.

The pass itself is :func:`influence_lab.experiments.cost.plain_pass`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from influence_ssl import GaussianNoise

WARM_UP = 1
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def pairs_of(images: Tensor, batch_size: int) -> list[Tensor]:
    """Each batch with its perturbed copy after it, ready-made: the plain pass pays for no noise."""
    noise = GaussianNoise()
    return [
        torch.cat([images[index], noise(images[index], index, 0, 0)])
        for index in torch.arange(len(images)).split(batch_size)
    ]


def seconds(jobs: Sequence[Callable[[], object]], rounds: int) -> dict[str, list[list[float]]]:
    """Seconds of each job, a list a round, on the wall clock and in processor time.

    The jobs are timed in turn, in one order and then in the other. On a machine that others use as
    well, processor time is the one to read.
    """
    found: dict[str, list[list[float]]] = {clock: [] for clock in CLOCKS}
    for number in range(rounds):
        order = range(len(jobs)) if number % 2 else reversed(range(len(jobs)))
        for clock in CLOCKS:
            found[clock].append([0.0] * len(jobs))
        for place in order:
            begin = {clock: read() for clock, read in CLOCKS.items()}
            jobs[place]()
            for clock, read in CLOCKS.items():
                found[clock][-1][place] = read() - begin[clock]
    return found


def ratios(
    work: Callable[[], object], unit: Callable[[], object], rounds: int
) -> dict[str, list[float]]:
    """Ratios of ``work`` to ``unit``, one a round, after one that does not count."""
    found = seconds((work, unit), WARM_UP + rounds)
    return {clock: [a / b for a, b in rows[WARM_UP:]] for clock, rows in found.items()}


def summary(found: dict[str, list[float]], clock: str = "cpu") -> dict[str, Any]:
    """Medians, the quartiles by one of the clocks, and the number of rounds."""
    low, _, high = statistics.quantiles(found[clock], n=4)
    return {
        **{clock: round(statistics.median(values), 4) for clock, values in found.items()},
        "quartiles": [round(low, 4), round(high, 4)],
        "rounds": len(found[clock]),
    }
