"""Where a part works: its device, its sizes and its folders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from influence_lab.datasets import Images
from influence_lab.gpu.packing import pack
from influence_lab.gpu.sizes import Sizes
from influence_lab.gpu.steps import Journal
from influence_lab.records.recording import data_for
from influence_ssl.files.writing import replacing


@dataclass
class Workplace:
    """What all steps of a call share.

    ``folder`` keeps what a later call goes on from: the journal, the log and records under
    ``results``, which are brought back to ``out`` if there is one, and checkpoints under ``runs``,
    which are too large for that.
    """

    sizes: Sizes
    device: torch.device
    folder: Path
    journal: Journal
    out: Path | None = None

    @property
    def results(self) -> Path:
        """The folder of records."""
        return self.folder / "results"

    @property
    def runs(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "runs"

    @cached_property
    def train(self) -> Images:
        """The images that encoders are trained on."""
        return data_for(self.sizes.profile, "train")

    @cached_property
    def test(self) -> Images:
        """The images that they are measured on."""
        return data_for(self.sizes.profile, "test")

    def say(self, text: str) -> None:
        """Print, and add to the log."""
        print(text, flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def save_text(self, name: str, text: str) -> None:
        """A file of text among the records."""
        with replacing(self.results / name, parents=True) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def bring_back(self) -> None:
        """Bring what there is so far to ``out``: a call may be ended from outside at any time."""
        if self.out is not None and (left := pack(self.folder, self.names(), self.out)):
            self.say(f"no room to bring back {', '.join(left)}")

    def names(self) -> list[str]:
        """What is brought back: the journal, the log, and records, the newest first."""
        found = [path for path in self.results.rglob("*") if path.is_file()]
        found = [path for path in found if path.name[0] != "."]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        first = [self.folder / "steps.json", self.folder / "log.txt"]
        return [str(path.relative_to(self.folder)) for path in (*first, *found) if path.is_file()]
