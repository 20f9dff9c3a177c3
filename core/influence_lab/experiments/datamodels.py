r"""Which number predicts how leaving images out changes the loss of another image, the query?

The training runs on random halves of :mod:`.memorisation` give the losses of every image in the
pool and of queries outside it. A number :math:`\tau_{qi}` for each query q and image i predicts, up
to a constant, the loss after training on the set S,

.. math:: L_q(S) \approx c_q + \sum_{i\in S}\tau_{qi},

and the linear datamodeling score is the rank correlation of both sides across training runs,
averaged over queries (Park et al. 2023, TRAK, arXiv:2303.14186). The influence is such a number,
and so are the product of gradients without curvature and the negative cosine of representations. A
ridge regression of the losses on the halves, fitted to other training runs, is the ceiling for
every number of this form (Ilyas et al. 2022, Datamodels, arXiv:2202.00622).

All numbers are computed with encoders trained on the whole pool, with noise and views that no
measurement used. The training images' gradients are those of the alignment of views, which training
minimises, and the queries' gradients are those of the loss in question. For comparison, gradients
of SimCLR's own loss against fixed negatives are used for the training images.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from scipy.stats import rankdata
from sklearn.linear_model import RidgeCV
from torch import Tensor

from influence_lab.experiments.left_out import Sampled
from influence_lab.experiments.memorisation import REGIMES, Study, plan_of, refuse_another
from influence_lab.experiments.memorisation_effects import SIZES, averaged
from influence_lab.experiments.predictors import DRAWS, Objective
from influence_lab.experiments.small_encoders import (
    AlignmentOfViews,
    NTXentOfViews,
    Recipe,
    SmallEncoder,
    View,
)
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import RESAMPLES
from influence_lab.pretrain import run_folder
from influence_lab.records import results
from influence_ssl import Identity, InfluenceScorer, Invariance, LoGra
from influence_ssl.curvature import Curvature
from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.writing import replacing

QUANTITIES = ("noise loss", "alignment loss")
INFLUENCE, PAIRS = "influence", "influence, all pairs of draws"
NT_XENT = "influence, NT-Xent"
GRADIENTS, COSINE = "gradients, no curvature", "cosine of representations"
FITTED = (25, 50, 100, 200, 400)
ALPHAS = np.logspace(-1, 4, 11)
DIGITS = 4
GROUP = 4
# Queries have views of their own, as `influence` gives them.
_QUERIES = 10_000


def linear_datamodeling_score(
    predicted: Float[np.ndarray, "g q t"], losses: Float[np.ndarray, "q t"], seed: int = 0
) -> Sampled:
    """Mean rank correlation across training runs of each query's predicted and measured losses.

    It is averaged over the g predictions. Resamples draw training runs and queries with
    replacement; ranks are those among all training runs.
    """
    q, t = losses.shape
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(t, np.full(t, 1 / t), RESAMPLES) / t
    chosen = rng.multinomial(q, np.full(q, 1 / q), RESAMPLES) / q
    every = np.concatenate([np.full((1, t), 1 / t), weights])
    queries = np.concatenate([np.full((1, q), 1 / q), chosen])
    y = _standard(losses)
    found = [(_correlations(every, _standard(one), y) * queries).sum(1) for one in predicted]
    whole = np.mean(found, axis=0)
    return Sampled(float(whole[0]), whole[1:])


def _standard(rows: Float[np.ndarray, "q t"]) -> Float64[np.ndarray, "q t"]:
    ranks = rankdata(rows, axis=1)
    return (ranks - ranks.mean(1, keepdims=True)) / ranks.std(1, keepdims=True)


def _correlations(
    weights: Float[np.ndarray, "b t"], x: Float[np.ndarray, "q t"], y: Float[np.ndarray, "q t"]
) -> Float64[np.ndarray, "b q"]:
    """Weighted correlations row by row."""
    x_mean, y_mean, xy, xx, yy = (weights @ rows.T for rows in (x, y, x * y, x * x, y * y))
    return (xy - x_mean * y_mean) / np.sqrt((xx - x_mean**2) * (yy - y_mean**2))


def ridge(
    inside: Bool[np.ndarray, "t p"], losses: Float[np.ndarray, "q t"]
) -> Float64[np.ndarray, "q p"]:
    """A datamodel: each image's contribution to each query's loss, by ridge regression.

    The penalty of each query minimises the leave-one-out error over :data:`ALPHAS`.
    """
    model = RidgeCV(alphas=ALPHAS, alpha_per_target=True)
    return np.atleast_2d(model.fit(inside.astype(np.float64), losses.T).coef_)


def of_encoder(
    encoder: SmallEncoder, recipe: Recipe, images: Float[Tensor, "m c h w"], pool: int, seed: int
) -> dict[str, dict[str, Float64[np.ndarray, "m p"]]]:
    """τ by quantity and name, of all images as queries; the first ``pool`` are trained on."""
    alignment = AlignmentOfViews(recipe)
    asked: dict[str, Objective] = dict(zip(QUANTITIES, (Invariance(), alignment), strict=True))
    with torch.no_grad():
        z = torch.nn.functional.normalize(encoder(images), dim=1).double()
        # Negatives are views, too, from a draw that no gradient uses.
        view = View(recipe)(images[:pool], torch.arange(pool), 2 * DRAWS, seed)
        bank = torch.nn.functional.normalize(encoder(view), dim=1)
    forms: dict[str, tuple[Curvature, Objective]] = {
        INFLUENCE: (LoGra(), alignment),
        GRADIENTS: (Identity(), alignment),
        NT_XENT: (LoGra(), NTXentOfViews(recipe, bank)),
    }
    found: dict[str, dict[str, np.ndarray]] = {}
    for quantity, objective in asked.items():
        rows = found[quantity] = {}
        for name, (curvature, training) in forms.items():
            scorer = InfluenceScorer(
                encoder, objective, curvature, draws=DRAWS, seed=seed, progress=False
            )
            scorer.fit(images[:pool], keep=True, objective=training)
            index = np.arange(len(images)) + _QUERIES
            rows[name] = scorer.influence(images, index=index).values
            if name == INFLUENCE:
                kept = scorer.fit_.kept
                assert kept is not None
                rows[PAIRS] = all_pairs(scorer.embed(images, index), kept.phi)
        rows[COSINE] = (-z @ z[:pool].T).cpu().numpy()
    return found


def all_pairs(
    queries: Float[Tensor, "q dm"], kept: Float[Tensor, "n dm"]
) -> Float64[np.ndarray, "q n"]:
    """The influence as the mean over all pairs of draws, from embeddings with paired ones."""
    # Each draw is divided by √draws, so their sum is √draws times their mean.
    one, other = (phi.cpu().double().unflatten(1, (DRAWS, -1)).sum(1) for phi in (queries, kept))
    return (-one @ other.T / DRAWS).numpy()


def numbers(study: Study, regime: str) -> dict[str, dict[str, Float64[np.ndarray, "e m p"]]]:
    """τ of the reference encoders, computed once, in small groups, and kept with the run."""
    count = study.plan.references
    parts = [
        _some(study, regime, range(first, min(first + GROUP, count)))
        for first in range(0, count, GROUP)
    ]
    found: dict[str, dict[str, np.ndarray]] = {quantity: {} for quantity in QUANTITIES}
    for key in parts[0]:
        quantity, name = key.split(": ")
        found[quantity][name] = np.concatenate([part[key] for part in parts])
    return found


def _some(study: Study, regime: str, encoders: range) -> dict[str, Float64[np.ndarray, "e m p"]]:
    task, pool = study.task, study.plan.pool
    folder = run_folder("memorisation", task.profile, task.seed, task.runs)
    path = folder / f"influence-{regime.replace(' ', '-')}-{encoders.start}.npz"
    made_of = {"encoders": list(encoders), "draws": DRAWS, "objectives": [NT_XENT, *QUANTITIES]}
    origin = study.trainings.origin | made_of
    if not path.is_file():
        trained = study.references(regime, encoders)
        made = [
            of_encoder(encoder, study.recipes[regime], study.images, pool, seed)
            for seed, encoder in zip(encoders, trained, strict=True)
        ]
        arrays: dict[str, Any] = {
            f"{quantity}: {name}": np.stack([one[quantity][name] for one in made])
            for quantity, rows in made[0].items()
            for name in rows
        }
        _write(path, arrays | {"written": np.array(json.dumps(origin))})
    with np.load(path, allow_pickle=False) as file:
        refuse_another(path, origin, json.loads(str(file["written"])))
        return {key: file[key] for key in file.files if key != "written"}


def _write(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, parents=True) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def measure(study: Study) -> dict[str, Any]:
    """Scores of every number and of datamodels, by regime, quantity and set of queries."""
    pool = study.plan.pool
    sets = {"outside the pool": slice(pool, None), "in the pool": slice(pool)}
    answers: dict[str, Any] = {}
    for regime in REGIMES:
        inside = study.inside(regime)
        held = slice(len(inside) - len(inside) * 3 // 7, None)
        fitted = [n for n in FITTED if n <= held.start]
        made = numbers(study, regime)
        for row, quantity in enumerate(QUANTITIES):
            losses = study.trainings.values[regime][:, row].T.astype(np.float64)
            models = {n: ridge(inside[:n], losses[:, :n]) for n in fitted}
            for name, queries in sets.items():
                answers.setdefault(regime, {}).setdefault(quantity, {})[name] = _scored(
                    {key: rows[:, queries] for key, rows in made[quantity].items()},
                    {n: rows[queries] for n, rows in models.items()},
                    inside[held], losses[queries, held], study.task.seed,
                )  # fmt: skip
    return answers


def _scored(
    made: dict[str, Float64[np.ndarray, "e q p"]],
    models: dict[int, Float64[np.ndarray, "q p"]],
    inside: Bool[np.ndarray, "t p"],
    losses: Float64[np.ndarray, "q t"],
    seed: int,
) -> dict[str, Any]:
    def score(rows: Float64[np.ndarray, "e q p"]) -> Sampled:
        return linear_datamodeling_score(rows @ inside.T, losses, seed)

    sizes = [size for size in SIZES if size <= len(next(iter(made.values())))]
    scores = {
        name: {str(size): score(averaged(rows, size)) for size in sizes}
        for name, rows in made.items()
    }
    most = str(sizes[-1])
    best = scores[INFLUENCE][most]
    return {
        "scores": {
            name: {size: _numbers(one) for size, one in row.items()} for name, row in scores.items()
        },
        "ridge": {str(n): _numbers(score(rows[None])) for n, rows in models.items()},
        "differences": {
            "all pairs of draws minus paired draws": {
                size: _numbers(scores[PAIRS][size] - one) for size, one in scores[INFLUENCE].items()
            },
            "influence minus NT-Xent": {most: _numbers(best - scores[NT_XENT][most])},
            "influence minus gradients": {most: _numbers(best - scores[GRADIENTS][most])},
            "influence minus cosine": {most: _numbers(best - scores[COSINE][most])},
        },
    }


def _numbers(found: Sampled) -> list[float]:
    return [round(float(number), DIGITS) for number in found.estimate]


def reproduce(task: Task) -> str:
    """Score every number on the recorded trainings, record and draw."""
    from influence_lab.figures import save, use_style

    begin = time.perf_counter()
    study = Study(plan_of(task.profile), task)
    counts = {regime: len(rows) for regime, rows in study.trainings.values.items()}
    if min(counts.values()) < 2 * min(FITTED):
        raise InfluenceValueError(
            f"{study.trainings.path} contains {min(counts.values())} training runs of a regime; "
            "first run influence-lab reproduce memorisation "
            f"--profile {task.profile} --seed {task.seed}"
        )
    record = {
        "images": study.plan.pool,
        "queries": study.plan.queries,
        "held out": {regime: count * 3 // 7 for regime, count in counts.items()},
        "regimes": measure(study),
        "provenance": results.provenance(
            task.command, task.profile, task.seed,
            study.pool.title, study.pool.digest, study.device,
            time.perf_counter() - begin,
        ),
    }  # fmt: skip
    results.save_json(study.folder / "datamodels.json", record)
    use_style()
    save(draw(record), task.picture)
    return line(record)


def line(record: dict[str, Any]) -> str:
    """The finding in one line, for the terminal."""
    parts = []
    for regime, answers in record["regimes"].items():
        found = answers["alignment loss"]["outside the pool"]
        row = {name: list(sizes.values())[-1][0] for name, sizes in found["scores"].items()}
        most, ceiling = list(found["ridge"].items())[-1]
        parts.append(
            f"{regime}: influence {row[INFLUENCE]:.3f}, gradients {row[GRADIENTS]:.3f}, cosine "
            f"{row[COSINE]:.3f}, ridge on {most} training runs {ceiling[0]:.3f}"
        )
    return "linear datamodeling score of the alignment loss, " + "; ".join(parts)


def draw(record: dict[str, Any], queries: str = "outside the pool") -> Any:
    """Scores of datamodels against their number of trainings; lines for the other numbers."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    shown = {
        INFLUENCE: ("influence", "blue", "-"),
        PAIRS: ("influence, all pairs of draws", "purple", ":"),
        GRADIENTS: ("gradients, no curvature", "green", "--"),
        COSINE: ("cosine of representations", "vermilion", "-."),
    }
    regimes = record["regimes"]
    figure, axes = plt.subplots(
        len(QUANTITIES), len(regimes), figsize=(WIDTH, 6), sharex=True, sharey=True, squeeze=False
    )
    for column, (regime, answers) in enumerate(regimes.items()):
        for row, quantity in enumerate(QUANTITIES):
            axis, found = axes[row, column], answers[quantity][queries]
            counts = [int(n) for n in found["ridge"]]
            value, low, high = np.array(list(found["ridge"].values())).T
            axis.plot(counts, value, "o-", color=COLORS["black"], label="ridge datamodel")
            axis.fill_between(counts, low, high, color=COLORS["grey"], alpha=0.3)
            for name, (label, color, style) in shown.items():
                value, low, high = list(found["scores"][name].values())[-1]
                axis.axhline(value, color=COLORS[color], linestyle=style, label=label)
                axis.axhspan(low, high, color=COLORS[color], alpha=0.12)
            axis.set(xscale="log", title=f"{regime}: {quantity}")
            if row == len(QUANTITIES) - 1:
                axis.set(xlabel="training runs for the datamodel")
            if column == 0:
                axis.set(ylabel="linear datamodeling score")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure
