"""All experiments by result: run one, or collect the readings of the paper's claims."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from influence_lab.experiments import claims
from influence_lab.experiments.task import Task

RESULTS = {
    "fig-1": "concept",
    "fig-2": "stability",
    "fig-3": "embedding",
    "fig-4": "near_duplicates",
    "fig-5": "galleries",
    "fig-6": "removal_effects",
    "fig-7": "fairness",
    "fig-8": "fairness",
    "fig-9": "distributions",
    "fig-10": "noise",
    "fig-11": "noise",
    "fig-12": "near_duplicates",
    "fig-13": "galleries",
    "fig-14": "galleries",
    "fig-15": "galleries",
    "fig-16": "galleries",
    "table-4": "families",
    "baselines": "baselines",
    "cost": "cost",
    "levels": "levels",
    "fidelity": "fidelity",
    "stream": "streaming",
    "architectures": "architectures",
    "memorisation": "memorisation_effects",
    "memorisation-cifar10": "memorisation_effects",
    "datamodels": "datamodels",
    "unrolled": "unrolled",
    "nearest": "nearest_by_influence",
    "both-seeds": "both_seeds",
    "explorer": "explorer",
    "traces": "traces",
    "trace-cost": "trace_cost",
    "host": "host",
    "planted": "planted",
}
"""The results of ``influence-lab reproduce NAME``, and the modules that produce them."""


def reproduce(task: Task) -> str:
    """Produce ``task.result``, one of :data:`RESULTS`; returns the line to print."""
    return _module(RESULTS[task.result]).reproduce(task)


def collect(root: Path | None = None) -> list[claims.Reading]:
    """The readings of all experiments, in the order of their results."""
    found: list[claims.Reading] = []
    for name in dict.fromkeys(RESULTS.values()):
        module = _module(name)
        if hasattr(module, "claims"):
            found += module.claims(root)
    twice = [name for name, count in Counter(one.id for one in found).items() if count > 1]
    if twice:
        raise ValueError(f"readings with the same id: {', '.join(twice)}")
    return found


def rows(root: Path | None = None, path: Path | None = None) -> list[claims.Row]:
    """One row per sentence, with its readings; each reading must belong to at least one."""
    return claims.match(claims.sentences(path), collect(root))


def _module(name: str) -> Any:
    # By name, because most are slow to import and a command needs only one.
    return import_module(f"{__package__}.{name}")
