"""Part f: many small encoders at once, each trained on its own half of a pool of images.

The experiment is :mod:`influence_lab.experiments.memorisation`, and so are its files. How many
encoders are trained at once follows from an epoch of several numbers of them. The training runs
come first, in rounds of which each is recorded and begun only if it fits into the time. Then come
the numbers of the encoders that are trained on the whole pool. The record itself needs no card:
``influence-lab reproduce`` makes it from these files.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

from influence_lab.experiments.memorisation import RECORDS, Study
from influence_lab.experiments.predictors import Predictors
from influence_lab.experiments.small_encoders import train_together
from influence_lab.experiments.task import Task
from influence_lab.gpu.budget import Budget
from influence_lab.gpu.clocks import fits, seconds
from influence_lab.gpu.steps import Partly, Step, short
from influence_lab.gpu.workplace import Workplace
from influence_lab.pretrain import cost

PACE, TRAININGS = "small encoders, pace", "small encoders, training runs"
# A round's time over that of its epochs, until one is known: it is measured as well.
MEASURING = 1.5
# Of the time of a round before the next one begins.
SPARE = 1.1


def steps(work: Workplace) -> list[Step]:
    """The pace, the training runs, and the numbers that are compared with what they show."""
    least = work.sizes.least
    return [
        Step(PACE, 60 * least, short(pace, work)),
        Step(TRAININGS, 60 * least, lambda budget: train(work, budget)),
        Step("small encoders, numbers", 120 * least, short(numbers, work)),
    ]


def study_of(work: Workplace) -> Study:
    """The experiment on this device, with its files among the records."""
    plan = work.sizes.encoders
    return Study(
        plan,
        Task(
            RECORDS[plan.data], work.sizes.profile, device=str(work.device), root=work.results,
            runs=work.runs,
        ),
    )  # fmt: skip


def pace(work: Workplace) -> dict[str, Any]:
    """Seconds and peak memory of an epoch, by the number of encoders that are trained at once.

    ``None`` where the card's memory does not suffice.
    """
    study, found = study_of(work), {}
    recipe = replace(study.recipes[study.plan.regimes[0]], epochs=1)
    for together in work.sizes.together:
        cost.forget_peak(work.device)
        job = partial(train_together, recipe, study.images, *study.runs(range(together)))
        took = fits(partial(seconds, job, work.device, 1))
        found[str(together)] = None if took is None else {
            "epoch": took["wall"], "cpu": took["cpu"], "bytes": cost.peak_bytes(work.device),
        }  # fmt: skip
    return found


def train(work: Workplace, budget: Budget) -> dict[str, Any] | Partly:
    """Round after round, as large as pays, until all runs are recorded or the time is over."""
    found = work.journal.value(PACE)
    if found is None:
        raise ValueError("no pace of the small encoders yet; see the step before")
    study = study_of(work)
    epochs = {int(k): study.plan.epochs * row["epoch"] for k, row in found.items() if row}
    if not epochs:
        raise ValueError(f"not even {min(map(int, found))} encoders fit into the card's memory")
    share = MEASURING
    while study.missing():
        fitting = [k for k in epochs if SPARE * share * epochs[k] < budget.left]
        if not fitting:
            k = min(epochs)
            work.say(
                f"small encoders: the next {k} take {share * epochs[k]:.0f} s of {budget.left:.0f} "
                "left"
            )
            return Partly(_so_far(study))
        together = min(fitting, key=lambda k: epochs[k] / k)
        begin = time.perf_counter()
        study.advance(together)
        share = (time.perf_counter() - begin) / epochs[together]
        work.journal.note(TRAININGS, "partly", 0.0, value=_so_far(study))
        work.bring_back()
        work.say(f"small encoders: {work.journal.value(TRAININGS)}")
    return _so_far(study)


def numbers(work: Workplace) -> dict[str, Any]:
    """Record the numbers of the reference encoders, one encoder after the other."""
    study = study_of(work)
    if not study.recorded:
        raise ValueError("no training run of the small encoders yet; see the step before")
    predictors = Predictors(study)
    predictors.complete()
    return {"encoders": {regime: predictors.done(regime) for regime in study.recorded}}


def _so_far(study: Study) -> dict[str, Any]:
    counts = {regime: len(study.trainings.values[regime]) for regime in study.plan.regimes}
    return {"training runs": counts, "seconds": study.trainings.seconds}
