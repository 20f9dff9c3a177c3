"""The parts, in the order of what they are worth."""

from __future__ import annotations

from collections.abc import Callable

from influence_lab.gpu import large, many, peers, scored, speed, suite, training
from influence_lab.gpu.steps import Step
from influence_lab.gpu.workplace import Workplace


def _others(work: Workplace) -> list[Step]:
    """The first of two methods gets half of the time."""
    return [
        *training.steps(work, "simclr", share=0.5),
        *scored.steps(work, "simclr"),
        *training.steps(work, "barlow"),
        *scored.steps(work, "barlow"),
    ]


PARTS: dict[str, Callable[[Workplace], list[Step]]] = {
    "a": suite.steps,
    "b": lambda work: [*speed.steps(work), *large.steps(work)],
    "c": lambda work: training.steps(work, "byol"),
    "d": lambda work: scored.steps(work, "byol"),
    "e": _others,
    "f": many.steps,
    "g": peers.steps,
}
