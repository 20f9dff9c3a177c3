"""The request to an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Task:
    """The result to produce, its size and its place."""

    result: str
    profile: str
    seed: int = 0
    device: str = "cpu"
    out: Path | None = None
    runs: Path | None = None
    root: Path | None = None

    @property
    def command(self) -> str:
        """The command that reproduces it, for the provenance."""
        return f"influence-lab reproduce {self.result} --profile {self.profile} --seed {self.seed}"

    @property
    def picture(self) -> Path:
        """The file of the figure."""
        return Path(f"{self.result}.svg") if self.out is None else self.out
