r"""Differentiation through training: the limit of numbers of the form :math:`\sum_i\tau_{qi}`.

With a weight w per image, the training run is a function of w, which determines the retrained loss
for any w. Its derivative at w = 1,

.. math:: \tau_{qi} = \frac{\partial L_q(\theta_T(w))}{\partial w_i},

is exact to first order, and influence functions approximate it. It is computed by replaying the
training backwards, with one step in memory at a time (Ilyas and Engstrom 2025, MAGIC,
arXiv:2504.16430):

.. math::
    \lambda_T = \nabla_\theta L_q(\theta_T),\qquad
    (\lambda_t,\ \tau \mathrel{+}=)\ = \lambda_{t+1}^\top\,
    \frac{\partial(\theta_t - \eta\nabla_\theta\ell_t(\theta_t, w))}{\partial(\theta_t,\ w)} .

The training is deterministic: one initialisation, the same views per step, all images in each
step. With small steps, the trained weights are a smooth function of w; with large steps they are
not, so both are measured. The influence function is computed in its best case: exact derivatives of
the same loss, the exact Hessian, and the damping that predicts best in hindsight.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from tqdm import tqdm

from influence_lab.experiments.datamodels import linear_datamodeling_score
from influence_lab.experiments.memorisation import Plan as PoolPlan
from influence_lab.experiments.memorisation import Pool
from influence_lab.experiments.small_encoders import AlignmentOfViews, Recipe, SmallEncoder, View
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import mean, rounded
from influence_lab.records import results
from influence_ssl import InfluenceScorer
from influence_ssl.errors import InfluenceValueError

RECIPE = Recipe(noise=False)
UNROLLED, LIBRARY = "unrolled training", "influence, LoGra"
EXACT = "influence function, best damping"
SHARES = (0.05, 0.5)
"""Shares of the pool that a retraining leaves out."""
DAMPING = (*np.logspace(-4, 2, 13), np.inf)
"""In units of the Hessian's largest eigenvalue; infinite damping is no curvature."""
MEASURED = 10_000
PAIRS = 8


@dataclass(frozen=True)
class Plan:
    """Sizes: images of the pool, queries outside it, steps, retrainings per share; step sizes."""

    pool: int
    queries: int
    steps: int
    subsets: int
    rates: tuple[float, ...] = (0.01, 0.3)


PLANS = {"tiny": Plan(16, 6, 12, 20), "cpu": Plan(64, 32, 300, 100)}


def encoders() -> dict[str, nn.Module]:
    """A linear and a convolutional encoder, in double precision, from one seed."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False))
    return {"linear": linear.double(), "convolutional": SmallEncoder(2).double()}


class Training:
    """Gradient descent on NT-Xent over all images, as a function of one weight per image.

    ``views`` (T, 2, n, ...): the two views of every image at each step. Parameters are one vector.
    """

    def __init__(self, encoder: nn.Module, views: Float[Tensor, "t 2 n 1 h w"], rate: float):
        self.skeleton = copy.deepcopy(encoder).to("meta")
        self.names = {name: p.shape for name, p in encoder.named_parameters()}
        self.start = nn.utils.parameters_to_vector(encoder.parameters()).detach()
        self.views, self.rate = views, rate

    def encode(self, θ: Float[Tensor, " p"], x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b d"]:
        """Unit representations under the parameters θ."""
        sizes = [shape.numel() for shape in self.names.values()]
        parts = zip(self.names.items(), θ.split(sizes), strict=True)
        weights = {name: part.view(shape) for (name, shape), part in parts}
        return F.normalize(functional_call(self.skeleton, weights, (x,)), dim=1)

    def loss(
        self, θ: Float[Tensor, " p"], w: Float[Tensor, " n"], views: Float[Tensor, "2 n 1 h w"]
    ) -> Float[Tensor, ""]:
        """NT-Xent in which image i counts w_i times, as an anchor and among the negatives."""
        z, w = self.encode(θ, views.flatten(0, 1)), torch.cat([w, w])
        itself = torch.eye(len(z), dtype=torch.bool)
        logits = (z @ z.T / RECIPE.temperature + w.log()).masked_fill(itself, -torch.inf)
        other = torch.arange(len(z)).roll(len(z) // 2)
        return (w * F.cross_entropy(logits, other, reduction="none")).sum() / w.sum()

    def path(self, w: Float[Tensor, " n"]) -> Iterator[Float[Tensor, " p"]]:
        """θ_0, ..., θ_T under the weights w."""
        θ = self.start
        yield θ
        for views in self.views:
            θ = θ - self.rate * grad(self.loss)(θ, w, views)
            yield θ

    def retrained(self, kept: Int64[Tensor, "s m"]) -> Float[Tensor, "s p"]:
        """θ_T of training runs with only the images ``kept``, all runs at once."""
        step = vmap(grad(self.loss), in_dims=(0, None, 0))
        θ, w = self.start.expand(len(kept), -1), self.start.new_ones(kept.shape[1])
        for views in self.views:
            θ = θ - self.rate * step(θ, w, views[:, kept].transpose(0, 1))
        return θ

    def replayed(self, λ: Float[Tensor, "q p"]) -> Float[Tensor, "q n"]:
        """dL_q / dw_i at w = 1, from the queries' gradients λ = ∇L_q(θ_T)."""
        ones = self.start.new_ones(self.views.shape[2])
        path = [*self.path(ones)]
        τ = λ.new_zeros(len(λ), len(ones))
        for θ, views in zip(path[-2::-1], self.views.flip(0), strict=True):
            at, w = θ.requires_grad_(), ones.clone().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self.loss(at, w, views), at, create_graph=True)
                after = at - self.rate * slope
            λ, added = torch.autograd.grad(after, (at, w), λ, is_grads_batched=True)
            τ = τ + added
        return τ


def influences(
    training: Training, θ: Float[Tensor, " p"], λ: Float[Tensor, "q p"]
) -> dict[float, Float64[np.ndarray, "q n"]]:
    r"""By λ, :math:`-\lambda_q^\top(H+\lambda\mathbf I)^{-1}\,\partial_{w_i}\nabla_\theta\ell`.

    ℓ is the training loss averaged over the views of 5 evenly spaced steps.
    """

    ones, some = (
        θ.new_ones(training.views.shape[2]),
        training.views[:: len(training.views) // 5 or 1],
    )
    mixed = jacrev(grad(training.loss), argnums=1)
    gradients = sum(mixed(θ, ones, views) for views in some) / len(some)  # (P, n)
    second = jacrev(grad(training.loss))  # not forward mode, which compiles operators
    curvature = sum(second(θ, ones, views) for views in some) / len(some)
    values, vectors = torch.linalg.eigh(curvature)
    left, right = λ @ vectors, vectors.T @ gradients
    found = {}
    for c in DAMPING:
        inverse = torch.ones_like(values) if c == np.inf else 1 / (values + c * values.max())
        found[float(c)] = (-(left * inverse) @ right).numpy()
    return found


class Study:
    """One encoder's training run, its queries, and the effect of retraining on them."""

    def __init__(self, plan: Plan, encoder: nn.Module, pool: Pool, seed: int, rate: float) -> None:
        self.plan, self.encoder, self.seed = plan, encoder, seed
        images, view = pool.images.double(), View(RECIPE)
        index = torch.arange(len(images))

        def two(x: Tensor, rows: Tensor, draw: int, seed: int) -> Tensor:
            return torch.stack([view(x, rows, 2 * draw + k, seed) for k in (0, 1)])

        self.images, self.asked = images[: plan.pool], images[plan.pool :]
        views = [two(self.images, index[: plan.pool], t, seed) for t in range(plan.steps)]
        self.training = Training(encoder, torch.stack(views), rate)
        # The queries' views are those of no step.
        self.measured = [
            two(self.asked, index[plan.pool :], t, seed + MEASURED) for t in range(PAIRS)
        ]

    def losses(self, θ: Float[Tensor, " p"]) -> Float[Tensor, " q"]:
        """The queries' alignment losses 1 - cos, the mean over fixed pairs of views."""
        pairs = ([self.training.encode(θ, x) for x in views] for views in self.measured)
        return torch.stack([0.5 * (a - b).square().sum(1) for a, b in pairs]).mean(0)

    def kept(self, share: float) -> Int64[np.ndarray, "s m"]:
        """The images in each retraining run."""
        rng = np.random.default_rng([self.seed, round(1000 * share)])
        n = self.plan.pool
        size = n - max(1, round(share * n))
        rows = [np.sort(rng.permutation(n)[:size]) for _ in range(self.plan.subsets)]
        return np.stack(rows)

    def numbers(self) -> dict[str, Any]:
        """τ of each kind; the exact influence function by damping."""
        *_, θ = self.training.path(self.training.start.new_ones(self.plan.pool))
        λ = jacrev(self.losses)(θ)
        trained = copy.deepcopy(self.encoder)
        nn.utils.vector_to_parameters(θ, trained.parameters())
        scorer = InfluenceScorer(
            trained, AlignmentOfViews(RECIPE), draws=PAIRS, seed=self.seed, progress=False
        )
        scorer.fit(self.images, keep=True)
        index = np.arange(len(self.asked)) + MEASURED
        return {
            UNROLLED: self.training.replayed(λ).numpy(),
            EXACT: influences(self.training, θ, λ),
            LIBRARY: scorer.influence(self.asked, index=index).values,
        }

    def compared(self, share: float, numbers: dict[str, Any]) -> dict[str, Any]:
        """Linear datamodeling scores against retraining, and the size of its effects."""
        kept = self.kept(share)
        inside = np.zeros((len(kept), self.plan.pool), bool)
        np.put_along_axis(inside, kept, True, 1)
        with torch.no_grad():
            θ = self.training.retrained(torch.from_numpy(kept))
            losses = torch.stack([self.losses(one) for one in θ], 1).numpy()
        scored = {
            name: self._score(τ, inside, losses) for name, τ in numbers.items() if name != EXACT
        }
        every = {c: self._score(τ, inside, losses) for c, τ in numbers[EXACT].items()}
        best = max(every, key=lambda c: every[c][0])
        scored[EXACT] = every[best]
        return {
            "left out": self.plan.pool - kept.shape[1],
            "retrainings": len(kept),
            "scores": scored,
            "best damping": best if np.isfinite(best) else "infinite",
            **rounded({"deviation over retrainings": mean(losses.std(1) / losses.mean(1))}),
        }

    def _score(
        self, τ: Float64[np.ndarray, "q n"], inside: Bool[np.ndarray, "s n"],
        losses: Float64[np.ndarray, "q s"],
    ) -> list[float]:  # fmt: skip
        score = linear_datamodeling_score((τ @ inside.T)[None], losses, self.seed)
        return [round(float(number), 4) for number in score.estimate]


def reproduce(task: Task) -> str:
    """Unroll the training of each encoder, retrain, compare, record and draw."""
    from influence_lab.figures import save, use_style

    if task.profile not in PLANS:
        raise InfluenceValueError(
            f"unrolled: no plan for profile {task.profile}; use one of {', '.join(PLANS)}"
        )
    begin, plan = time.perf_counter(), PLANS[task.profile]
    pool = Pool(PoolPlan(plan.pool, plan.queries, 0, 0, 0, 0), task.seed)
    answers: dict[str, Any] = {}
    cases = [(name, rate) for name in encoders() for rate in plan.rates]
    for name, rate in tqdm(cases, disable=not sys.stderr.isatty()):
        study = Study(plan, encoders()[name], pool, task.seed, rate)
        numbers = study.numbers()
        found = {str(share): study.compared(share, numbers) for share in SHARES}
        answers.setdefault(name, {})[str(rate)] = found
    record = {
        "images": plan.pool,
        "queries": plan.queries,
        "steps": plan.steps,
        "encoders": answers,
        "provenance": results.provenance(
            task.command, task.profile, task.seed,
            f"digits train ({plan.pool} images, and {plan.queries} outside the pool)", pool.digest,
            results.device_name("cpu"), time.perf_counter() - begin,
        ),
    }  # fmt: skip
    results.save_json(
        (task.root or results.results_root()) / task.profile / "unrolled.json", record
    )
    use_style()
    save(draw(record), task.picture)
    return line(record)


def line(record: dict[str, Any]) -> str:
    """The finding in one line."""
    share, parts = str(SHARES[0]), []
    for name, rates in record["encoders"].items():
        for rate, found in rates.items():
            scores = found[share]["scores"].items()
            numbers = ", ".join(f"{key} {value[0]:.3f}" for key, value in scores)
            parts.append(f"{name}, steps of {rate}: {numbers}")
    return f"linear datamodeling score, {share} left out; " + "; ".join(parts)


def draw(record: dict[str, Any]) -> Any:
    """Scores with their intervals, one panel per encoder."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    answers = record["encoders"]
    figure, axes = plt.subplots(1, len(answers), figsize=(WIDTH, 3.4), sharex=True, sharey=True)
    names, colors = (UNROLLED, EXACT, LIBRARY), ("black", "blue", "vermilion")
    for axis, (encoder, rows) in zip(axes, answers.items(), strict=True):
        cases = [(rate, share) for rate, shares in rows.items() for share in shares]
        for k, (rate, share) in enumerate(cases):
            for j, (name, color) in enumerate(zip(names, colors, strict=True)):
                value, low, high = rows[rate][share]["scores"][name]
                y = -k - 0.2 * j
                axis.plot([low, high], [y, y], color=COLORS[color])
                axis.plot(value, y, "o", color=COLORS[color], label=name if k == 0 else None)
        axis.set(title=f"{encoder} encoder", xlabel="linear datamodeling score")
        axis.set_yticks([-k - 0.2 for k in range(len(cases))])
        axis.set_yticklabels(
            [f"steps of {rate}, {float(share):.0%} left out" for rate, share in cases]
        )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure
