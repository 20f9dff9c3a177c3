"""Part c: one full ResNet-18 by each method, for as many epochs as there is time for.

The settings are Table 2's but for the number of epochs, to which the schedule of the rate belongs.
It is fixed at the first call, from the pace that a few steps show, and later calls keep it. The
same steps say whether ``torch.compile`` pays.
"""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np

from influence_lab.gpu.budget import Budget
from influence_lab.gpu.steps import Partly, Step, short
from influence_lab.gpu.workplace import Workplace
from influence_lab.pretrain import Run, Settings, cost, pretrain, run_folder
from influence_lab.pretrain.train import fast_in_bf16
from influence_lab.records import recording, results

# Seconds kept for measuring and recording an encoder, and between two copies of it on the way.
RECORDING, COPY = 60.0, 60.0
# Losses of the first epochs of an eager and of a compiled training differ by less.
ALIKE = 0.05
# Of an epoch's steps: for its checkpoint and its point of the kNN curve, together about a second.
BETWEEN = 1.25
# Epochs' steps that have to be left for another epoch to begin.
SPARE = 2


def steps(work: Workplace, method: str, share: float = 1.0) -> list[Step]:
    """The pace, then the training in ``share`` of the time that the call has then."""
    return [
        Step(f"{method}, pace", 60 * work.sizes.least, short(pace, work, method)),
        Step(
            f"{method}, training", 120 * work.sizes.least,
            lambda budget: train(work, method, budget, share),
        ),
    ]  # fmt: skip


def pace(work: Workplace, method: str) -> dict[str, Any]:
    """Seconds of a step, eager and compiled, and the losses, which show that both train alike.

    Of three epochs of a few steps each, the last two count: the first one also compiles. Nothing
    of a pace that was stopped is kept, so that both have these three epochs.
    """
    settings = work.sizes.settings(method)
    n = work.sizes.steps * settings.batch
    some = work.train.subset(np.arange(n) % len(work.train))
    found: dict[str, Any] = {}
    for name, backend in (("eager", None), ("compiled", work.sizes.backend)):
        folder = run_folder(f"{method}-{name}", "pace", 0, work.runs)
        shutil.rmtree(folder, ignore_errors=True)
        begin = time.perf_counter()
        try:
            run = pretrain(
                settings, 0, some, None, folder, work.device, stop_after=3, progress=False,
                compiled=backend,
            )  # fmt: skip
        except Exception as error:
            # Compilers have faults of their own; without one the training goes on.
            if backend is None:
                raise
            found[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
            continue
        later = run.epochs[1:]
        found[name] = {
            "seconds a step": sum(epoch["seconds"] for epoch in later)
            / (len(later) * work.sizes.steps),
            "losses": [epoch["loss"] for epoch in run.epochs],
            "seconds": round(time.perf_counter() - begin, 1),
        }
    eager, compiled = found["eager"], found["compiled"]
    alike = "error" not in compiled and np.allclose(eager["losses"], compiled["losses"], rtol=ALIKE)
    pays = alike and compiled["seconds a step"] < eager["seconds a step"]
    return found | {"alike": alike, "faster": "compiled" if pays else "eager"}


def train(work: Workplace, method: str, budget: Budget, share: float) -> dict[str, Any] | Partly:
    """Train to the end of the plan or of the time, then measure and record the encoder.

    On the way a copy of the encoder is among the records, newer than :data:`COPY` seconds, and
    brought back.
    """
    name, device = f"{method}, training", str(work.device)
    end = budget.left * (1 - share)
    plan = (work.journal.value(name) or {}).get("plan") or _plan(work, method, budget, share)
    # Noted before the first checkpoint, which belongs to this plan alone.
    work.journal.note(name, "partly", 0.0, value=(work.journal.value(name) or {}) | {"plan": plan})
    settings = work.sizes.settings(method, plan["epochs"])
    folder = run_folder(method, settings.profile, 0, work.runs)
    copied = budget.clock()

    def after(run: Run) -> bool:
        nonlocal copied
        epoch = run.epochs[-1]
        work.say(
            f"{method}: epoch {len(run.epochs)} of {settings.epochs}, {epoch['seconds']:.1f} s, "
            f"loss {epoch['loss']:.4f}, kNN {epoch['knn']:.4f}"
        )
        work.journal.note(name, "partly", 0.0, value=_so_far(plan, run))
        if budget.clock() - copied >= COPY:
            copied = budget.clock()
            results.save_encoder(run.encoder, _place(work, settings) / "encoder.safetensors")
            work.bring_back()
        return budget.left - end < RECORDING * work.sizes.least + SPARE * epoch["seconds"]

    run = pretrain(
        settings, 0, work.train, work.test, folder, work.device, progress=False,
        after_epoch=after, compiled=work.sizes.backend if plan["compiled"] else None,
    )  # fmt: skip
    if not run.done:
        results.save_encoder(run.encoder, _place(work, settings) / "encoder.safetensors")
        return Partly(_so_far(plan, run))
    kind = cost.here(work.device, settings.bf16 and fast_in_bf16(work.device))
    record = recording.record(run, work.train, work.test, kind, device, work.results)
    return _so_far(plan, run) | {"accuracy": record["accuracy"], "cost": record["cost"]}


def _plan(work: Workplace, method: str, budget: Budget, share: float) -> dict[str, Any]:
    """Epochs that end in the time by the measured pace, and whether to compile."""
    found = work.journal.value(f"{method}, pace")
    if found is None:
        raise ValueError(f"no pace of {method} yet; see the step before")
    settings = work.sizes.settings(method)
    faster = found[found["faster"]]
    epoch = len(work.train) // settings.batch * faster["seconds a step"]
    time_left = share * budget.left - RECORDING * work.sizes.least - SPARE * epoch
    epochs = max(1, min(settings.epochs, int(time_left / (BETWEEN * epoch))))
    return {"epochs": epochs, "compiled": found["faster"] == "compiled"}


def _so_far(plan: dict[str, Any], run: Run) -> dict[str, Any]:
    return {
        "plan": plan,
        "epochs": len(run.epochs),
        "knn": [round(epoch["knn"], 4) for epoch in run.epochs],
        "seconds": round(sum(epoch["seconds"] for epoch in run.epochs), 1),
    }


def _place(work: Workplace, settings: Settings) -> Any:
    return results.folder_of(settings.profile, settings.method, 0, work.results)
