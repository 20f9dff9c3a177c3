"""Part d: the scores of all images with a trained encoder."""

from __future__ import annotations

from typing import Any

from influence_lab.gpu.steps import Step, short
from influence_lab.gpu.workplace import Workplace
from influence_lab.records import recording, results


def steps(work: Workplace, method: str) -> list[Step]:
    """Training images first, as figures need these."""
    return [
        Step(
            f"{method}, scores of {split}", 40 * work.sizes.least,
            short(score, work, method, split),
        )
        for split in ("train", "test")
    ]  # fmt: skip


def score(work: Workplace, method: str, split: str) -> dict[str, Any]:
    """Score a split with the recorded encoder, record the scores, and say what they took."""
    profile = work.sizes.profile
    if results.load_run(profile, method, 0, work.results) is None:
        raise ValueError(f"{method} is not trained to its end; call the part that trains it again")
    found = recording.score_and_record(
        method, profile, 0, split, str(work.device), progress=False, root=work.results
    )
    return {
        "images": len(found),
        "mean magnitude": found.mean,
        "seconds": found.provenance["wall_seconds"],
    }
