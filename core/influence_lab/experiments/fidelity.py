"""The agreement of cheaper curvatures with the exact empirical Fisher, and their cost.

One encoder, one set of images, one noise draw; λ = c × the mean non-zero eigenvalue tr(H)/n of the
exact H, the same number for every approximation. Costs are those of a whole call of
``InfluenceScorer.score``. Score vectors are stored in ``fidelity.npz``, from which a stopped run
resumes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64

from influence_lab.benchmark import timing
from influence_lab.benchmark.approximations import GlobalProjection, ScaledLoGra, Stored
from influence_lab.benchmark.candidates import CANDIDATES, EXACT, LOSS, RANKS, SKETCH
from influence_lab.benchmark.estimators import ESTIMATORS, Estimator
from influence_lab.benchmark.exact import Gram
from influence_lab.benchmark.factors import Factors, kronecker_factors
from influence_lab.experiments.scored import Scored
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import partial_spearman, rounded, spearman
from influence_lab.records import results
from influence_lab.records.vectors import Vectors
from influence_ssl import GaussianNoise, InfluenceScorer, Invariance, LoGra
from influence_ssl.curvature import Curvature
from influence_ssl.errors import InfluenceValueError

METHOD = "simclr"
DAMPINGS = (0.01, 0.1, 1.0)
MAIN = 0.1
COMPARED = (0.1, 1.0)
DRAWS = (1, 2, 3, 4)
RELIABLE = 0.95
FAITHFUL = 0.995
RANK = LoGra().rank or 0
STORED = {"float16": torch.float16, "bfloat16": torch.bfloat16}
JOINT = {False: "per layer", True: "joint"}

Column = Float64[np.ndarray, " n"]


class Sizes(NamedTuple):
    """Images to score; images, rounds and batch size for measuring a cost.

    ``slow_rounds`` applies to calls that take longer than :data:`.timing.SLOW` plain passes.
    """

    images: int
    timed: int
    rounds: int
    slow_rounds: int
    batch: int


SIZES = {"tiny": Sizes(128, 32, 3, 2, 32)}
LARGE = Sizes(800, 128, 10, 3, 64)


class Fidelity:
    """Magnitudes of the images by name, computed if they are not recorded yet."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.sizes = SIZES.get(task.profile, LARGE)
        found = Scored(task, METHOD, task.seed)
        chosen = np.sort(
            np.random.default_rng(0).permutation(len(found.index))[: self.sizes.images]
        )
        self.encoder, self.index = found.encoder, torch.from_numpy(found.index[chosen])
        self.images = found.images[chosen]
        folder = results.folder_of(task.profile, METHOD, task.seed, task.root)
        origin = {k: v for k, v in (found.vectors.origin or {}).items() if k != "curvature"}
        self.vectors = Vectors(folder / "fidelity.npz", origin | {"images": len(chosen)})
        self.data = f"{len(chosen):,} of {origin['data']}"
        self.stores = Path()

    @contextmanager
    def working(self) -> Iterator[None]:
        """A folder for gradients that several curvatures read while the block runs."""
        with tempfile.TemporaryDirectory(prefix="fidelity-") as folder:
            self.stores = Path(folder)
            yield

    @cached_property
    def factors(self) -> dict[str, Factors]:
        """K-FAC's and PCA's moments, in the order of the images' own noise."""
        noise = _Indexed(self.index)
        return kronecker_factors(self.encoder, self.images, Invariance(noise))

    @property
    def unit(self) -> float:
        """tr(H)/n, the unit of λ."""
        return float(self.vectors.notes[f"{EXACT}, {MAIN}"]["unit"])

    def exact(self, noise: int = 0) -> None:
        """The exact scores at every damping, and the norms, from one pass and one Gram matrix."""
        suffix = f", noise {noise}" if noise else ""
        names = {c: f"{EXACT}, {c}{suffix}" for c in DAMPINGS}
        if all(name in self.vectors for name in names.values()):
            return
        begin, gram = time.perf_counter(), Gram()
        self._score(gram, f"full-{noise}", seed=noise)
        for c, name in names.items():
            if name not in self.vectors:
                value = gram.magnitude(c * gram.mean_eigenvalue)
                self._add(name, value, begin, unit=gram.mean_eigenvalue)

    def magnitude(
        self, name: str, curvature: Curvature, space: str, seed: int = 0, **settings: Any
    ) -> Column:
        """The vector with this name."""
        if name not in self.vectors:
            begin = time.perf_counter()
            self._add(name, self._score(curvature, space, seed, **settings), begin)
        return self.vectors[name]

    def candidate(self, name: str, c: float) -> Column:
        """One candidate's magnitudes at λ = c × :attr:`unit`."""
        key, one = f"{name}, {c}", CANDIDATES[name]
        if key in self.vectors:
            return self.vectors[key]
        factors = self.factors if one.factors else {}
        space = "full-0" if one.space == "full" else one.space
        return self.magnitude(key, one.make(c * self.unit, factors), space)

    def loss(self) -> Column:
        """The loss alone."""
        if LOSS not in self.vectors:
            begin = time.perf_counter()
            self._add(LOSS, loss_pass(self.encoder, self.images, self.index), begin)
        return self.vectors[LOSS]

    def _score(
        self, curvature: Curvature, space: str | None, seed: int = 0, **settings: Any
    ) -> Column:
        store = None if space is None else self.stores / space
        if store is not None:
            store.mkdir(exist_ok=True)
        scorer = InfluenceScorer(
            self.encoder, curvature=curvature, seed=seed, store=store,
            batch_size=self.sizes.batch, progress=sys.stderr.isatty(), **settings,
        )  # fmt: skip
        return scorer.score(self.images, self.index).magnitude

    def _add(self, name: str, magnitude: Column, begin: float, **note: Any) -> None:
        self.vectors.add(
            name, magnitude, seconds=round(time.perf_counter() - begin, 1),
            code=results.code_version(), **note,
        )  # fmt: skip


class _Indexed:
    """The default noise of images whose position in a set is not their index."""

    def __init__(self, index: torch.Tensor) -> None:
        self.index = index

    def __call__(self, x: Any, index: Any, draw: int, seed: int) -> Any:
        return GaussianNoise()(x, self.index[index], draw, seed)


def loss_pass(encoder: torch.nn.Module, images: torch.Tensor, index: torch.Tensor) -> Column:
    """The losses, from forward passes alone."""
    objective = Invariance()
    with torch.no_grad():
        parts = [
            objective(encoder.eval(), (images[rows],), index[rows], 0, 0)
            for rows in torch.arange(len(images)).split(64)
        ]
    return torch.cat(parts).double().numpy()


def measure(one: Fidelity) -> Iterator[tuple[str, Any]]:
    """The record's parts, from the fastest to the slowest; each number with its interval."""
    with one.working():
        one.exact()
        exact = {c: one.vectors[f"{EXACT}, {c}"] for c in DAMPINGS}
        yield "reliability", reliability(one)
        yield "shipped", {JOINT[joint]: _shipped(one, joint, exact[MAIN]) for joint in JOINT}
        pairs = ((0.01, 0.1), (0.1, 1.0), (0.01, 1.0))
        yield "damping", {f"{a} {b}": spearman(exact[a], exact[b]) for a, b in pairs}
        yield "estimators", _estimators(one)
        loss, names = one.loss(), [name for name in CANDIDATES if name != EXACT]
        against: dict[str, Any] = {}
        for c in COMPARED:
            found = {name: one.candidate(name, c) for name in names}
            against[str(c)] = {
                name: spearman(value, exact[c]) for name, value in {LOSS: loss, **found}.items()
            }
            if c == MAIN:
                beyond = {n: partial_spearman(found[n], exact[c], loss) for n in names}
                yield "given the loss", beyond
                yield "projections", _projections(one)
        yield "spearman", against
        yield "noise", _noise(one, exact[MAIN])


def _shipped(one: Fidelity, joint: bool, exact: Column) -> dict[str, Any]:
    """The library's LoGra with its own rule for λ: ranks, and the effect of precision."""
    words, base = JOINT[joint], _plain(one, joint)
    found = {str(rank): spearman(_plain(one, joint, rank), exact) for rank in RANKS}
    bf16 = one.magnitude(f"bf16 {words}", LoGra(RANK, joint), "bf16", dtype=torch.bfloat16)
    found["bf16"] = spearman(bf16, base)
    for name, dtype in STORED.items():
        curvature = Stored(LoGra(RANK, joint), dtype)
        stored = one.magnitude(f"stored {name} {words}", curvature, f"shipped {RANK}, 0")
        found[f"stored {name}"] = spearman(stored, base)
    return found


def _plain(one: Fidelity, joint: bool, rank: int = RANK, seed: int = 0) -> Column:
    name = f"shipped {rank} {JOINT[joint]}, projection {seed}"
    return one.magnitude(name, LoGra(rank, joint, seed=seed), f"shipped {rank}, {seed}")


def _projections(one: Fidelity) -> dict[str, Any]:
    """Rank correlation between two projection seeds."""
    λ, found = MAIN * one.unit, {}
    for joint, words in JOINT.items():
        found[f"shipped {words}"] = spearman(_plain(one, joint), _plain(one, joint, seed=1))
        name = f"random {RANK} {words}"
        other = one.magnitude(
            f"{name}, projection 1", ScaledLoGra(RANK, joint, λ, seed=1), f"random {RANK}, 1"
        )
        found[name] = spearman(one.candidate(name, MAIN), other)
    name = f"global {SKETCH}"
    other = one.magnitude(f"{name}, projection 1", GlobalProjection(SKETCH, λ, 1), "full-0")
    return found | {name: spearman(one.candidate(name, MAIN), other)}


def _noise(one: Fidelity, exact: Column) -> dict[str, Any]:
    """Rank correlation between two noise draws, for the exact and the default score."""
    one.exact(noise=1)
    return {
        EXACT: spearman(exact, one.vectors[f"{EXACT}, {MAIN}, noise 1"]),
        "default": spearman(_draws(one, 1, 0), _draws(one, 1, 1)),
    }


def _draws(one: Fidelity, draws: int, seed: int) -> Column:
    name = f"{draws} draws, noise {seed}"
    return one.magnitude(name, LoGra(), f"draws {draws} {seed}", seed, draws=draws)


def reliability(one: Fidelity) -> dict[str, Any]:
    """Rank correlation between two runs of m draws each, with the library's default curvature."""
    return {str(m): spearman(_draws(one, m, 0), _draws(one, m, 1)) for m in DRAWS}


def _estimators(one: Fidelity) -> dict[str, Any]:
    """For each use of draws, the rank correlation between two runs and with averaged scores."""

    def vector(estimator: Estimator, seed: int) -> Column:
        if not (estimator.antithetic or estimator.gradients):
            return _draws(one, estimator.draws, seed)
        name = f"{estimator.name}, noise {seed}"
        return one.magnitude(name, LoGra(), f"draws {name}", seed, **estimator.settings)

    most = _draws(one, max(DRAWS), 1)
    return {
        estimator.name: {
            "two runs": spearman(vector(estimator, 0), vector(estimator, 1)),
            "with scores averaged": spearman(vector(estimator, 0), most),
        }
        for estimator in ESTIMATORS
    }


def draws_needed(reliability: dict[str, list[float]]) -> int | None:
    """The smallest number of draws with reliability :data:`RELIABLE`; ``None`` if none has it."""
    return next((int(m) for m, estimate in reliability.items() if estimate[0] >= RELIABLE), None)


def costs(one: Fidelity, known: dict[str, Any], keep: Callable[[Any], None]) -> dict[str, Any]:
    """Each candidate's cost; ``keep`` is called after each one with all costs so far."""
    images = one.images[: one.sizes.timed]
    index = one.index[: len(images)]
    plain = timing.plain_passes(one.encoder, timing.pairs_of(images, one.sizes.batch))
    found = dict(known)

    def scoring(name: str) -> None:
        if name == LOSS:
            loss_pass(one.encoder, images, index)
            return
        candidate = CANDIDATES[name]
        factors: dict[str, Factors] = {}
        if candidate.factors:
            factors = kronecker_factors(one.encoder, images, Invariance())
        InfluenceScorer(
            one.encoder, curvature=candidate.make(MAIN * one.unit, factors),
            batch_size=one.sizes.batch, progress=False,
        ).score(images, index)  # fmt: skip

    for name in (LOSS, *CANDIDATES):
        if name not in found:
            rounds = one.sizes.rounds, one.sizes.slow_rounds
            found[name] = timing.summary(timing.ratios(partial(scoring, name), plain, *rounds))
            keep(dict(found))
    return found


def recorded(part: str, root: Path | None = None) -> tuple[str, Any]:
    """The largest profile whose record has this part, and the part."""
    for profile in results.LARGEST_FIRST:
        record = results.load_record(profile, "fidelity", root) or {}
        if part in record:
            return profile, record[part]
    raise InfluenceValueError(
        f"fidelity: {part!r} is not recorded; run influence-lab reproduce fidelity --profile tiny"
    )


def reproduce(task: Task) -> str:
    """Score, compare and time with the recorded SimCLR encoder; record, and draw the picture.

    The record is written after each part. A complete record is computed again from the recorded
    vectors; a stopped run keeps the costs that were measured.
    """
    from influence_lab.benchmark.picture import figure
    from influence_lab.figures import save, use_style

    path = (task.root or results.results_root()) / task.profile / "fidelity.json"
    before = results.load_record(task.profile, "fidelity", task.root) or {}
    known = before.get("timing", {}) if "cost" not in before else {}
    one, begin = Fidelity(task), time.perf_counter()
    record: dict[str, Any] = {"method": METHOD, "images": len(one.images), "timing": known}

    def keep(part: str, value: Any) -> None:
        record[part] = value
        origin = results.provenance(
            task.command, task.profile, task.seed, one.data,
            (one.vectors.origin or {})["data_sha256"], results.device_name("cpu"),
            time.perf_counter() - begin,
        )  # fmt: skip
        scoring = sum(note["seconds"] for note in one.vectors.notes.values())
        results.save_json(path, record | {"scoring seconds": scoring, "provenance": origin})

    for part, value in measure(one):
        keep(part, rounded(value))
    keep("timed", one.sizes._asdict())
    cost = costs(one, known, partial(keep, "timing"))
    del record["timing"]
    keep("cost", cost)
    use_style()
    save(figure(cost, record["spearman"][str(MAIN)], FAITHFUL), task.picture)
    default, joint = (record["shipped"][words][str(RANK)][0] for words in JOINT.values())
    return (
        f"rank correlation with the exact score {default:.3f} per layer, {joint:.3f} joint; "
        f"draws for a reliability of {RELIABLE}: {draws_needed(record['reliability'])}"
    )
