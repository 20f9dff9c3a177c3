"""One module per experiment: it measures, writes a recorded result, and draws.

Each has ``reproduce(task)``, which writes its record under ``task.root`` (see
:mod:`influence_lab.records.results`), draws a figure to ``task.out`` where it has one, and returns
one line for the terminal. One that tests claims of the paper has ``claims(root)`` as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

RESULTS = {
    "fig-1": "concept",
    "fig-2": "stability",
    "fig-3": "embedding",
    "fig-4": "near_duplicates",
    "fig-5": "galleries",
    "fig-6": "removal",
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
    "memorisation": "memorisation",
    "traces": "traces",
}


@dataclass(frozen=True)
class Task:
    """What to make, at which size, and where."""

    result: str
    profile: str
    seed: int = 0
    device: str = "cpu"
    out: Path | None = None
    runs: Path | None = None
    root: Path | None = None

    @property
    def command(self) -> str:
        """The call that makes it again, for the provenance."""
        return f"influence-lab reproduce {self.result} --profile {self.profile} --seed {self.seed}"

    @property
    def picture(self) -> Path:
        """The file of the figure."""
        return Path(f"{self.result}.svg") if self.out is None else self.out


def reproduce(task: Task) -> str:
    """Make ``task.result``, one of :data:`RESULTS`; the line to print about it."""
    return import_module(f"{__name__}.{RESULTS[task.result]}").reproduce(task)
