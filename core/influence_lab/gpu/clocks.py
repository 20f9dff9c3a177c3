"""Seconds of work on a device: by the wall, and of the processor that starts it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from influence_lab.benchmark.timing import WARM_UP, seconds_of


def settle(device: torch.device) -> None:
    """Wait for what the device is still at."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    job: Callable[[], object], device: torch.device, rounds: int, warm_up: int | None = None
) -> dict[str, float]:
    """Medians of ``rounds`` by both clocks, after ``warm_up`` rounds that do not count.

    Each round ends when the device has done its work. By default :data:`WARM_UP` do not count.
    """

    def whole() -> None:
        job()
        settle(device)

    settle(device)
    for _ in range(WARM_UP if warm_up is None else warm_up):
        whole()
    found = [seconds_of(whole) for _ in range(rounds)]
    return {clock: statistics.median(one[clock] for one in found) for clock in found[0]}


def fits(job: Callable[[], dict[str, float]]) -> dict[str, float] | None:
    """What ``job`` returns, or ``None`` where the card's memory does not suffice."""
    try:
        return job()
    except torch.cuda.OutOfMemoryError:
        pass
    # Only here, where the error's frames no longer hold the tensors.
    torch.cuda.empty_cache()
    return None
