"""Figure 6: remove training images by influence, retrain from scratch, measure the encoder.

Each method is trained after removal of the images with the highest influence, the lowest influence,
or random images. The outcome of every training run is recorded immediately, so an interrupted
experiment can resume, and several processes can share it; lock files prevent duplicate work.
:mod:`.removal_effects` computes intervals, verdicts and the figure from the outcomes, and
:mod:`.removed_images` what removal did to the losses of the removed images themselves.

Supervised training is ranked by the influence on the classifier's own loss, with labels, because
the paper calls it "tied to label-driven objectives" (B.5).

The paper's Figure 6 has two orders. Random removal is added, because a smaller data set costs
accuracy (and, with a fixed number of epochs, steps) whichever images are removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64

from influence_lab.datasets import Images
from influence_lab.experiments.distributions import LABELS
from influence_lab.experiments.removal_losses import BATCH, DRAWS, PoolLosses, image_losses
from influence_lab.experiments.task import Task
from influence_lab.pretrain import (
    METHODS,
    Settings,
    pretrain,
    removal_settings,
    run_folder,
    settings_for,
)
from influence_lab.pretrain.methods import build
from influence_lab.pretrain.probes import extract, knn_accuracy, linear_accuracy
from influence_lab.pretrain.resnets import CifarResNet18
from influence_lab.records import results
from influence_lab.records.locks import locked
from influence_lab.records.recording import data_for, recorded_or_made
from influence_ssl.errors import InfluenceValueError

ORDERS = ("highest", "lowest", "random")
MEASURES = ("knn", "linear", "classifier")
NOTHING = "none"
BEFORE = "before training"
SEEDS = (0, 42, 123)
"""Table 3's."""


class Training(NamedTuple):
    """One run: ``amount`` images removed in ``order``, or none with the order ``"none"``."""

    method: str
    order: str
    amount: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """The training runs of the experiment.

    Images are removed from a fixed random part of the training data with ``pool`` images (``None``:
    all of them); ``epochs`` replaces the profile's number (``None``: Table 3's, if it has one).
    """

    pool: int | None
    amounts: tuple[int, ...]
    epochs: int | None
    seeds: tuple[int, ...] = SEEDS
    methods: tuple[str, ...] = METHODS

    def trainings(self) -> list[Training]:
        """All runs, seed by seed, so that the early ones are balanced."""
        removals = [(NOTHING, 0), *((order, k) for k in self.amounts for order in ORDERS)]
        return [
            Training(method, order, amount, seed)
            for seed in self.seeds
            for order, amount in removals
            for method in self.methods
        ]

    def indices(self, n: int) -> Int64[np.ndarray, " p"]:
        """The pool's positions among ``n`` training images, ascending."""
        if self.pool is None:
            return np.arange(n)
        return np.sort(np.random.default_rng([0, n]).permutation(n)[: self.pool])

    def settings(self, method: str, profile: str) -> Settings:
        """The method's settings in ``profile``, with Table 3 (profile paper) or fewer epochs."""
        if self.epochs is not None:
            return replace(settings_for(method, profile), epochs=self.epochs)
        # Table 3 has no column for training with labels.
        return settings_for(method, profile) if method == "supervised" else removal_settings(method)


# Profile cpu: 3 seeds x 4 methods x (1 + 2 amounts x 3 orders) = 84 trainings. A seed and a method
# take 10,000 + 3 x 9,000 + 3 x 6,000 = 55,000 images through 8 epochs, which pretrain.cost predicts
# at 2.1 (SimCLR), 2.3 (BYOL), 1.7 (Barlow Twins) and 1.9 hours (supervised) of one core for three
# seeds, 8.0 in all. Features of 20,000 images, at 1.5 ms each, add half a minute a training and 0.7
# hours: 8.7 hours of one core, or a little more than four of two.
#
# The paper's text does not say how many images were removed.
_AMOUNTS = (1000, 2500, 5000, 10000, 20000)
PLANS = {
    "tiny": Plan(pool=256, amounts=(64, 128), epochs=2),
    "cpu": Plan(pool=10_000, amounts=(1000, 4000), epochs=8),
    "gpu": Plan(pool=None, amounts=_AMOUNTS, epochs=20),
    "paper": Plan(pool=None, amounts=_AMOUNTS, epochs=None),
}


def removal_order(
    order: str, scores: results.RecordedScores, pool: Int64[np.ndarray, " p"], seed: int
) -> Int64[np.ndarray, " p"]:
    """The images of ``pool`` in the order in which they are removed, one of :data:`ORDERS`.

    The random order depends only on ``seed`` and is the same for every method. In every order, a
    larger amount includes the smaller ones.
    """
    if order == "random":
        return np.random.default_rng([1, seed]).permutation(pool)
    ranked = scores.order(order)
    return ranked[np.isin(ranked, pool)]


def kept(
    training: Training, scores: results.RecordedScores, pool: Int64[np.ndarray, " p"]
) -> Int64[np.ndarray, " k"]:
    """The images that ``training`` is trained on, ascending."""
    if training.order == NOTHING:
        return pool
    order = removal_order(training.order, scores, pool, training.seed)
    return np.setdiff1d(pool, order[: training.amount])


def measure(encoder: CifarResNet18, bank: Images, test: Images) -> dict[str, float]:
    """Accuracies on ``test``: ``knn``, ``linear``, and ``classifier`` for an encoder with its own.

    ``bank`` is the whole pool for every run, including removed images, so that two encoders differ
    only by their training images.
    """
    known, asked = (extract(encoder, part.tensor()) for part in (bank, test))
    labels, truth = (torch.from_numpy(part.labels.copy()) for part in (bank, test))
    found = {
        "knn": knn_accuracy(known, labels, asked, truth),
        "linear": linear_accuracy(known, labels, asked, truth),
    }
    if encoder.fc is not None:
        with torch.no_grad():
            logits = encoder.fc(asked.to(encoder.fc.weight.device)).cpu()
        found["classifier"] = float((logits.argmax(1) == truth).double().mean())
    return found


class Study:
    """An experiment in progress: its record, and the methods that add one run to it."""

    def __init__(self, plan: Plan, task: Task, progress: bool = True) -> None:
        self.plan, self.task, self.progress = plan, task, progress
        self.train, self.test = (data_for(task.profile, part) for part in ("train", "test"))
        self.digest = self.train.digest
        self.pool = plan.indices(len(self.train))
        if max(plan.amounts) >= len(self.pool):
            raise InfluenceValueError(
                f"amounts {plan.amounts}: not all smaller than the pool of {len(self.pool)} images"
            )
        self.bank = self.train.subset(self.pool)
        self.path = (task.root or results.results_root()) / task.profile / "removal.json"
        self.origin = {
            "data_sha256": self.digest,
            "pool": len(self.pool),
            "measured": {"draws": DRAWS, "batch": BATCH},
        }
        self.losses()  # refuses a file of other images at once
        self.runs = run_folder("removal", task.profile, task.seed, task.runs)

    def record(self) -> dict[str, Any]:
        """The record so far."""
        if not self.path.is_file():
            return {"plan": {}, "methods": {}, "outcomes": [], "provenance": {}}
        return json.loads(self.path.read_text(encoding="utf-8"))

    def losses(self) -> PoolLosses:
        """The losses of the pool's images in the runs so far."""
        return PoolLosses(self.path.with_name("removal-losses.npz"), self.origin)

    def done(self) -> set[Training]:
        """The runs whose outcome and whose images' losses are recorded."""
        measured = set(self.losses().rows)
        return {one for one in _done(self.record()) if name_of(one) in measured}

    def missing(self) -> list[Training]:
        """The remaining runs; methods with scores come first."""
        done = self.done()
        unscored = {method for method in self.plan.methods if self._scores(method) is None}
        left = [training for training in self.plan.trainings() if training not in done]
        return sorted(left, key=lambda training: training.method in unscored)

    def advance(self) -> bool:
        """Carry out the next run, or compute its scores; ``False`` if nothing remains.

        Runs of another process are left to it.
        """
        return any(self._claim(training) for training in self.missing())

    def measure_start(self) -> None:
        """Record the accuracies of the label-free methods' initial weights, by seed."""
        with locked(self.runs / f"{BEFORE}.lock", wait=False) as mine:
            if not mine or BEFORE in self.record():
                return
            found: dict[str, list[float]] = {"knn": [], "linear": []}
            settings = self.plan.settings("simclr", self.task.profile)
            for seed in self.plan.seeds:
                start = build(settings, len(self.train.classes), seed).encoder.to(self.task.device)
                shares = measure(start.eval(), self.bank, self.test)
                for name, values in found.items():
                    values.append(round(shares[name], 6))
            with locked(self.runs / "record.lock", wait=True):
                results.save_json(self.path, self.record() | {BEFORE: found})

    def _scores(self, method: str) -> results.RecordedScores | None:
        task = self.task
        return results.load_scores(
            task.profile, method, task.seed, "train", task.root, labels=with_labels(method)
        )

    def _claim(self, training: Training) -> bool:
        task, scores = self.task, self._scores(training.method)
        name = name_of(training) if scores else f"scores-{training.method}"
        with locked(self.runs / f"{name}.lock", wait=False) as mine:
            if not mine:
                return False
            if scores is None:
                recorded_or_made(
                    training.method, task.profile, task.seed, "train", task.device, task.runs,
                    task.root, labels=with_labels(training.method),
                )  # fmt: skip
            elif training not in self.done():
                self._do(training, scores, self.runs / name)
            return True

    def _do(self, training: Training, scores: results.RecordedScores, folder: Path) -> None:
        task, begin = self.task, time.perf_counter()
        settings = self.plan.settings(training.method, task.profile)
        origin = {
            "settings": asdict(settings),
            "pool": len(self.pool),
            "data_sha256": self.digest,
            "scores": {
                "command": scores.provenance["command"],
                "rank_sha256": hashlib.sha256(scores.rank.tobytes()).hexdigest(),
            },
        }
        self._check(training.method, origin)
        left = self.train.subset(kept(training, scores, self.pool))
        run = pretrain(settings, training.seed, left, None, folder, task.device, progress=False)
        found = measure(run.encoder, self.bank, self.test)
        losses = image_losses(run.encoder, self.bank, self.pool, settings.augmentation)
        seconds = time.perf_counter() - begin
        outcome = {
            **training._asdict(),
            "images": len(left),
            **{name: round(share, 6) for name, share in found.items()},
            "loss": round(run.epochs[-1]["loss"], 6),
            "seconds": round(seconds, 1),
            "device": results.device_name(task.device),
            "code": results.code_version(),
        }
        self._add(outcome, origin | {"removed per class": self._removed(scores)}, losses)
        shutil.rmtree(folder)
        if self.progress:
            self._report(outcome)

    def _check(self, method: str, origin: dict[str, Any]) -> None:
        known = self.record()["methods"].get(method, origin)
        for name, value in origin.items():
            if known[name] != value:
                raise InfluenceValueError(
                    f"{self.path}: {method} was recorded with other {name} than asked for; "
                    "move the file away to begin anew"
                )

    def _removed(self, scores: results.RecordedScores) -> dict[str, dict[str, list[int]]]:
        """The number of images of each class in a removal: order, amount, counts."""
        labels, classes = self.train.labels, len(self.train.classes)
        orders = {o: removal_order(o, scores, self.pool, 0) for o in ("highest", "lowest")}
        return {
            order: {
                str(amount): np.bincount(labels[ranked[:amount]], minlength=classes).tolist()
                for amount in self.plan.amounts
            }
            for order, ranked in orders.items()
        }

    def _add(
        self,
        outcome: dict[str, Any],
        method: dict[str, Any],
        losses: dict[str, Float32[np.ndarray, " n"]],
    ) -> None:
        task, new = self.task, _training(outcome)
        with locked(self.runs / "record.lock", wait=True):
            # First the losses: a run counts as done once both are there.
            self.losses().add(name_of(new), losses)
            record = self.record()
            record["plan"] = asdict(self.plan)
            record["methods"][outcome["method"]] = method
            place = {training: i for i, training in enumerate(self.plan.trainings())}
            others = [other for other in record["outcomes"] if _training(other) != new]
            record["outcomes"] = sorted(
                [*others, outcome], key=lambda o: place.get(_training(o), len(place))
            )
            record["provenance"] = results.provenance(
                task.command,
                task.profile,
                task.seed,
                f"{self.train.name} train ({len(self.pool):,} of {len(self.train):,} images), "
                f"test ({len(self.test):,} images)",
                self.digest,
                results.device_name(task.device),
                sum(o["seconds"] for o in record["outcomes"]),
            )
            results.save_json(self.path, record)

    def _report(self, outcome: dict[str, Any]) -> None:
        record, total = self.record(), len(self.plan.trainings())
        left = self.missing()
        shares = ", ".join(f"{m} {outcome[m]:.2%}" for m in MEASURES if m in outcome)
        amount, order = outcome["amount"], outcome["order"]
        what = f"{amount:,} removed ({order})" if amount else "nothing removed"
        print(
            f"[{total - len(left)}/{total}] {LABELS[outcome['method']]}, seed {outcome['seed']}, "
            f"{what}: {shares} in {outcome['seconds'] / 60:.1f} min; left, for one process: "
            f"{hours_left(record['outcomes'], left, len(self.pool)):.1f} h",
            file=sys.stderr,
            flush=True,
        )


def hours_left(outcomes: list[dict[str, Any]], left: list[Training], pool: int) -> float:
    """Time for ``left``, at the method's median seconds per image, or that of all methods."""
    rates: dict[str, list[float]] = {}
    for outcome in outcomes:
        rates.setdefault(outcome["method"], []).append(outcome["seconds"] / outcome["images"])
    every = [rate for found in rates.values() for rate in found]
    seconds = [
        (pool - training.amount) * statistics.median(rates.get(training.method, every))
        for training in left
    ]
    return sum(seconds) / 3600


def with_labels(method: str) -> bool:
    """Whether removal ranks the images by the influence on the classifier's loss."""
    return method == "supervised"


def name_of(training: Training) -> str:
    """``supervised-highest-1000-42``: the run's name in files."""
    return "-".join(map(str, training))


def _training(outcome: dict[str, Any]) -> Training:
    return Training(*(outcome[name] for name in Training._fields))


def _done(record: dict[str, Any]) -> set[Training]:
    return {_training(outcome) for outcome in record["outcomes"]}


def carry_out(plan: Plan, task: Task, progress: bool = True) -> dict[str, Any]:
    """Carry out every run of ``plan`` that is not recorded yet; returns the record.

    The record is complete unless another process is still working on some of the runs.
    """
    study = Study(plan, task, progress)
    while study.advance():
        pass
    study.measure_start()
    return study.record()
