"""One call on the machine: its parts, within its time, with what it brings back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from influence_lab.gpu.archive import unpacked
from influence_lab.gpu.budget import RESERVE, Budget, OutOfTime, ending
from influence_lab.gpu.parts import PARTS
from influence_lab.gpu.sizes import DRY, FULL
from influence_lab.gpu.steps import Journal, carry_out
from influence_lab.gpu.workplace import Workplace
from influence_lab.records import results
from influence_ssl.errors import InfluenceValueError


def call(
    parts: Sequence[str],
    folder: Path,
    out: Path,
    seconds: float,
    dry: bool,
) -> list[str]:
    """Do the steps of ``parts`` that are not done, in ``seconds``, the last of them for packing.

    Results are brought to ``out`` at the beginning, as it may be a new folder, and after each step.
    Returns the names of the steps that are left. Raises :class:`InfluenceError` where there is no
    card and no ``dry``.
    """
    budget = Budget(seconds - RESERVE)
    if not dry and not torch.cuda.is_available():
        raise InfluenceValueError(
            "PyTorch finds no CUDA card here; --dry (DRY=1) runs everything in miniature on the CPU"
        )
    device = torch.device("cpu" if dry else "cuda")
    origin = {
        "sizes": "in miniature" if dry else "in full",
        "device": results.device_name(device),
        "torch": torch.__version__,
    }
    journal = Journal(folder / "steps.json", origin, results.code_version())
    work = Workplace(DRY if dry else FULL, device, folder, journal, out)
    unpacked(folder / "data")
    steps = [step for part in parts for step in PARTS[part](work)]

    def written() -> None:
        work.bring_back()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    work.say(f"parts {' '.join(parts)} on {origin['device']}, {seconds:.0f} s")
    try:
        with ending(budget.left):
            work.bring_back()
            carry_out(steps, journal, budget, work.say, written)
    except OutOfTime:
        work.say("the time is over between two steps")
    left = [step.name for step in steps if not journal.done(step.name)]
    work.say(f"left to do: {'; '.join(left) or 'nothing'}")
    written()
    return left
