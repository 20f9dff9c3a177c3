"""What does leaving an image out change, and which number predicts the change?

Many small SimCLR encoders are trained on random halves of a pool of images. An image's memorisation
is its mean loss over the encoders trained without it, minus that over the encoders trained with it
(:mod:`.left_out`). Three losses are measured: Equation 6's with noise, the misalignment of two of
the training's own views, and the share of nearest neighbours with a different label. In one regime
the views are random crops; in the other, Equation 6's noise is added to each crop.

Training runs are recorded batch by batch, a plan's regimes in turn, so an interrupted experiment
can resume. Run t has the same half and initialisation in both regimes. :mod:`.predictors` computes
the numbers that are compared with the truth. Both run on the task's device, and the files name it.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float16, Int64
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from influence_lab.datasets import Images, load
from influence_lab.experiments.small_encoders import Recipe, SmallEncoder, View, train_together
from influence_lab.experiments.task import Task
from influence_lab.pretrain import run_folder
from influence_lab.pretrain.resnets import normalise
from influence_lab.records import results
from influence_lab.records.locks import locked
from influence_ssl import GaussianNoise
from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.writing import replacing

QUANTITIES = ("noise loss", "alignment loss", "disagreement")
REGIMES = {"crops": Recipe(noise=False), "crops and noise": Recipe(noise=True)}
NEIGHBOURS = 5
DRAWS = {"noise": 4, "alignment": 8}
# The truth's noise and views are not those of the numbers that are compared with it.
MEASURED = 10_000
# So many encoders are measured at once as keep the cosines and the images below this many numbers.
MEASURED_AT_ONCE = 2**29
_HALF, _TRAINING, _REFERENCE = range(3)


# By data set: the result's name, and what differs in the recipes. Objects look the same in a
# mirror, digits do not. Scenes are for miniatures only.
RECORDS = {
    "digits": "memorisation", "cifar10": "memorisation-cifar10", "scenes": "memorisation-scenes",
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "digits": {}, "cifar10": {"flips": True}, "scenes": {"flips": True, "width": 2, "batch": 8},
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Sizes: images in the pool, queries outside it, training runs per regime, and runs at once."""

    pool: int
    queries: int
    trainings: int
    together: int
    references: int
    epochs: int
    data: str = "digits"
    regimes: tuple[str, ...] = tuple(REGIMES)


PLANS = {
    "digits": {
        "tiny": Plan(pool=64, queries=16, trainings=64, together=32, references=4, epochs=30),
        "cpu": Plan(pool=128, queries=64, trainings=1000, together=20, references=16, epochs=150),
    },
    "cifar10": {
        "cpu": Plan(
            pool=256, queries=100, trainings=400, together=4, references=16, epochs=150,
            data="cifar10", regimes=("crops",),
        ),
        "gpu": Plan(
            pool=5_000, queries=500, trainings=256, together=64, references=4, epochs=150,
            data="cifar10", regimes=("crops",),
        ),
    },
}  # fmt: skip


def half(seed: int, training: int, pool: int) -> Int64[np.ndarray, " h"]:
    """The positions in the pool, ascending, of the images in training run ``training``."""
    order = np.random.default_rng([seed, _HALF, training]).permutation(pool)
    return np.sort(order[: pool // 2])


def _training_seed(seed: int, purpose: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, purpose, number]).generate_state(1, np.uint64)[0] >> 2)


class Pool:
    """The images of one plan and seed: the pool's first, then the queries."""

    def __init__(self, plan: Plan, seed: int) -> None:
        whole = load(plan.data)
        chosen = np.random.default_rng([seed, len(whole)]).permutation(len(whole))
        self.index = chosen[: plan.pool + plan.queries]
        self.size = plan.pool
        self.part: Images = whole.subset(self.index)
        self.digest = whole.digest
        outside = len(self.index) - plan.pool
        self.title = f"{whole.name} train ({plan.pool} images, and {outside} outside the pool)"

    @cached_property
    def images(self) -> Float[Tensor, "m c h w"]:
        """The encoders' input: grey pixels in [0, 1], colours normalised like CIFAR-10."""
        pixels = self.part.tensor()
        return normalise(pixels) if pixels.shape[1] == 3 else pixels.float() / 255


class Measurement:
    """The three losses of every image for encoders of one regime, with fixed noise and views."""

    def __init__(self, pool: Pool, recipe: Recipe, device: str | torch.device = "cpu") -> None:
        x, index, view = pool.images.to(device), torch.arange(len(pool.part)), View(recipe)
        self.pool, self.images = pool, x
        self.noisy = [GaussianNoise()(x, index, d, MEASURED) for d in range(DRAWS["noise"])]
        self.views = [view(x, index, d, MEASURED) for d in range(2 * DRAWS["alignment"])]
        labels = torch.from_numpy(pool.part.labels.copy())
        self.differs = (labels[:, None] != labels[None, : pool.size]).to(device)

    def __call__(self, encoders: Sequence[SmallEncoder]) -> Float16[np.ndarray, "k q m"]:
        """The rows of :data:`QUANTITIES` for each encoder."""
        per_encoder = len(self.images) * max(self.pool.size, self.images[0].numel())
        step = max(1, MEASURED_AT_ONCE // per_encoder)
        found = [self._some(encoders[k : k + step]) for k in range(0, len(encoders), step)]
        return np.concatenate(found)

    @torch.no_grad()
    def _some(self, encoders: Sequence[SmallEncoder]) -> Float16[np.ndarray, "k q m"]:
        weights, _ = stack_module_state(list(encoders))
        skeleton = copy.deepcopy(encoders[0]).to("meta")

        def encode(x: Tensor) -> Float[Tensor, "k m d"]:
            z = vmap(lambda w: functional_call(skeleton, w, (x,)))(weights)
            return F.normalize(z, dim=2)

        def distance(a: Tensor, b: Tensor) -> Float[Tensor, "k m"]:
            return 0.5 * (a - b).square().sum(2)

        clean = encode(self.images)
        noise = torch.stack([distance(clean, encode(x)) for x in self.noisy]).mean(0)
        z = [encode(x) for x in self.views]
        pairs = zip(z[::2], z[1::2], strict=True)
        alignment = torch.stack([distance(a, b) for a, b in pairs]).mean(0)
        found = torch.stack([noise, alignment, self._disagreement(clean)], 1).cpu()
        if not found.isfinite().all():
            raise InfluenceValueError("an encoder's representation is zero or not finite")
        return found.numpy().astype(np.float16)

    def _disagreement(self, clean: Float[Tensor, "k m d"]) -> Float[Tensor, "k m"]:
        """The share of the nearest pool images, except the image itself, with another label."""
        p = self.pool.size
        cosine = clean @ clean[:, :p].mT
        cosine.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        near = cosine.topk(NEIGHBOURS, dim=2).indices
        rows = self.differs.expand(len(clean), -1, -1)
        return rows.gather(2, near).float().mean(2)


def refuse_another(path: Path, origin: dict[str, Any], written: dict[str, Any]) -> None:
    """Raise an :class:`InfluenceValueError` if a file's origin is not the requested one."""
    other = [name for name, value in origin.items() if written.get(name) != value]
    if other:
        raise InfluenceValueError(
            f"{path}: was made with another {' and '.join(other)}; move the file away to begin anew"
        )


class Trainings:
    """The record of all training runs, one file: (T, 3, M) losses in float16 for each regime.

    Run t is the t-th that was carried out, so :func:`half` gives its images. A file with another
    plan, recipe, seed or data is refused with an :class:`InfluenceValueError`.
    """

    def __init__(self, path: Path, origin: dict[str, Any]) -> None:
        self.path, self.origin = path, origin
        width = origin["plan"]["pool"] + origin["plan"]["queries"]
        self.values = {r: np.zeros((0, len(QUANTITIES), width), np.float16) for r in REGIMES}
        self.seconds = dict.fromkeys(REGIMES, 0.0)
        self.code: list[str] = []
        self.devices: list[str] = []
        if path.is_file():
            self._read()

    def _read(self) -> None:
        with np.load(self.path, allow_pickle=False) as file:
            written = json.loads(str(file["written"]))
            self.values = {regime: file[regime] for regime in REGIMES}
        refuse_another(self.path, self.origin, written["origin"])
        self.seconds, self.code = written["seconds"], written["code"]
        self.devices = written["devices"]

    def add(
        self, regime: str, values: Float16[np.ndarray, "k q m"], seconds: float, device: str
    ) -> None:
        """Append the losses for k encoders, and write the whole file."""
        self.values[regime] = np.concatenate([self.values[regime], values])
        self.seconds[regime] = round(self.seconds[regime] + seconds, 1)
        self.code = list(dict.fromkeys([*self.code, results.code_version()]))
        self.devices = list(dict.fromkeys([*self.devices, device]))
        written = {
            "origin": self.origin, "seconds": self.seconds, "code": self.code,
            "devices": self.devices,
        }  # fmt: skip
        with replacing(self.path, parents=True) as temporary, temporary.open("wb") as file:
            arrays: dict[str, Any] = {"written": np.array(json.dumps(written)), **self.values}
            np.savez_compressed(file, **arrays)


class Study:
    """An experiment in progress: its pool, recipes and record, and the methods that add to it."""

    def __init__(self, plan: Plan, task: Task) -> None:
        self.plan, self.task = plan, task
        self.device = results.device_name(task.device)
        self.pool = Pool(plan, task.seed)
        self.recipes = {
            name: replace(recipe, epochs=plan.epochs, **CHANGES[plan.data])
            for name, recipe in REGIMES.items()
        }
        root = results.results_root() if task.root is None else task.root
        self.folder = root / task.profile
        sizes = {k: v for k, v in asdict(plan).items() if k in ("pool", "queries", "epochs")}
        origin = {
            "plan": sizes,
            "recipes": {name: asdict(recipe) for name, recipe in self.recipes.items()},
            "seed": task.seed,
            "data_sha256": self.pool.digest,
            "measured": {"draws": DRAWS, "seed": MEASURED, "neighbours": NEIGHBOURS},
        }
        self.name = RECORDS[plan.data]
        self.trainings = Trainings(self.folder / f"{self.name}-trainings.npz", origin)

    @property
    def recorded(self) -> list[str]:
        """The regimes with recorded training runs."""
        return [regime for regime, values in self.trainings.values.items() if len(values)]

    def inside(self, regime: str) -> Bool[np.ndarray, "t p"]:
        """The pool images in each recorded training run."""
        t, p = len(self.trainings.values[regime]), self.plan.pool
        seen = np.zeros((t, p), bool)
        for number, row in enumerate(seen):
            row[half(self.task.seed, number, p)] = True
        return seen

    def missing(self) -> list[str]:
        """The plan's regimes with missing training runs, the one with the fewest runs first."""
        done = {regime: len(self.trainings.values[regime]) for regime in self.plan.regimes}
        return sorted((r for r in done if done[r] < self.plan.trainings), key=lambda r: done[r])

    def runs(self, numbers: range) -> tuple[list[Int64[np.ndarray, " h"]], list[int]]:
        """The halves of the training runs with these numbers, and their seeds."""
        halves = [half(self.task.seed, t, self.plan.pool) for t in numbers]
        return halves, [_training_seed(self.task.seed, _TRAINING, t) for t in numbers]

    def advance(self, together: int | None = None) -> bool:
        """Carry out and record one regime's next runs; ``False`` if all are recorded.

        ``together``: how many at once, the plan's number by default.
        """
        regime = next(iter(self.missing()), None)
        if regime is None:
            return False
        begin = time.perf_counter()
        first = len(self.trainings.values[regime])
        last = first + (self.plan.together if together is None else together)
        halves, seeds = self.runs(range(first, min(last, self.plan.trainings)))
        encoders = train_together(self.recipes[regime], self.images, halves, seeds)
        found = self._measurements[regime](encoders)
        self.trainings.add(regime, found, time.perf_counter() - begin, self.device)
        return True

    def references(self, regime: str, numbers: range | None = None) -> list[SmallEncoder]:
        """Encoders trained on the whole pool, whose numbers are compared with the truth.

        All encoders of the plan, or those with these ``numbers``.
        """
        numbers = range(self.plan.references) if numbers is None else numbers
        seeds = [_training_seed(self.task.seed, _REFERENCE, number) for number in numbers]
        whole = [np.arange(self.plan.pool)] * len(seeds)
        return train_together(self.recipes[regime], self.images, whole, seeds)

    @cached_property
    def images(self) -> Float[Tensor, "m c h w"]:
        """The pool's images on the task's device."""
        return self.pool.images.to(self.task.device)

    @cached_property
    def _measurements(self) -> dict[str, Measurement]:
        return {
            regime: Measurement(self.pool, self.recipes[regime], self.task.device)
            for regime in self.plan.regimes
        }


def plan_of(profile: str, data: str = "digits") -> Plan:
    """The plan of a profile; raises an :class:`InfluenceValueError` if there is none yet."""
    plans = PLANS[data]
    if profile not in plans:
        raise InfluenceValueError(
            f"{RECORDS[data]}: no plan for profile {profile}; use one of {', '.join(plans)}"
        )
    return plans[profile]


def carry_out(study: Study, progress: bool = True) -> None:
    """Carry out every training run that is not recorded yet, in one process at a time."""
    task, plan = study.task, study.plan
    lock = run_folder(study.name, task.profile, task.seed, task.runs) / "trainings.lock"

    def done() -> int:
        return sum(len(study.trainings.values[regime]) for regime in plan.regimes)

    with locked(lock, wait=False) as mine:
        if not mine:
            raise InfluenceValueError(
                f"{lock}: another process works on these training runs; wait for it, or stop it"
            )
        with tqdm(
            total=len(plan.regimes) * plan.trainings, initial=done(), unit="training",
            file=sys.stderr, disable=not progress, mininterval=20,
        ) as bar:  # fmt: skip
            while study.advance():
                bar.update(done() - bar.n)
