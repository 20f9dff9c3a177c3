"""Is the training image with the largest influence on an image its near-duplicate?

The images are the 5,000 automobiles of :mod:`.near_duplicates`, with the near-duplicates that their
pixels reveal. For each image, every ranking gives the nearest other image: the image whose
influence lowers its loss most, the one with the largest product of gradients without curvature, and
the one with the most similar representation. Two questions are asked. How often is a
near-duplicate's nearest image from the same group, and how well does the nearest image's value
distinguish near-duplicates from other images? Noise is drawn for each image separately or once for
all; in the latter case equal images have equal gradients. The record also contains the effect of
rounding φ to half precision on the rankings.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from influence_lab.experiments.distributions import LABELS, METHODS
from influence_lab.experiments.left_out import rank_correlation
from influence_lab.experiments.near_duplicates import of_class
from influence_lab.experiments.scored import Scored, available
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import CONFIDENCE, Estimate, bootstrap, rounded
from influence_lab.measures.detection import auroc
from influence_lab.measures.pixel_duplicates import RULES, Found, find
from influence_lab.pretrain import run_folder
from influence_lab.pretrain.probes import extract
from influence_lab.pretrain.views import SharedNoise
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_ssl import GaussianNoise, InfluenceScorer, Invariance, LoGra
from influence_ssl.curvature import Fitted, Gradients, Same

NOISES = {"noise of its own": GaussianNoise(), "one noise for all": SharedNoise()}
WITHOUT = "without noise"
HALVES = torch.float16, torch.bfloat16
QUERIES = 200
_ROWS = 512


class Nearest(NamedTuple):
    """Each image's nearest other image by a product, the first of ties, and the product."""

    place: Int64[np.ndarray, " n"]
    value: Float64[np.ndarray, " n"]


def nearest(rows: Float[Tensor, "n m"]) -> tuple[Nearest, Nearest]:
    """The other row with the largest product with each row, and the one with the largest cosine."""
    length = rows.norm(dim=1).clamp(min=1e-30)
    found: tuple[list[Tensor], ...] = ([], [], [], [])
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS] @ rows.T
        own = torch.arange(len(block))
        block[own, own + start] = -torch.inf
        for kind, values in enumerate((block, block / length / length[start:][own][:, None])):
            value, place = values.max(1)
            found[2 * kind].append(place)
            found[2 * kind + 1].append(value)
    place, value, cosine_place, cosine = (torch.cat(parts).numpy() for parts in found)
    return Nearest(place, value.astype(float)), Nearest(cosine_place, cosine.astype(float))


@dataclass(frozen=True)
class Uncurved(LoGra):
    """LoGra's projected gradients without curvature: φ(g) = g."""

    def fit(self, gradients: Gradients) -> Fitted:
        """Use no gradient."""
        return Fitted([(slice(0, sum(layer.size for layer in gradients.layers)), Same())])


def share(hit: Float[np.ndarray, " m"], group: Int64[np.ndarray, " m"]) -> Estimate:
    """The mean of ``hit``; its interval resamples groups, each of which is one observation.

    If all agree, the bound is Clopper and Pearson's with one trial per group.
    """
    _, member = np.unique(group, return_inverse=True)
    hits, sizes = np.bincount(member, hit), np.bincount(member).astype(np.float64)
    if hit.mean() in (0.0, 1.0):
        reach = ((1 - CONFIDENCE) / 2) ** (1 / len(sizes))
        return Estimate(1.0, reach, 1.0) if hit.mean() else Estimate(0.0, 0.0, 1 - reach)
    return bootstrap(lambda w, h, s: w @ h / (w @ s), hits, sizes, n=len(sizes))


def quality(found: Found, value: Float64[np.ndarray, " n"], place: Any = None) -> dict[str, Any]:
    """By rule: ``auroc`` of the value for near-duplicates, and the share of ``place`` in the group.

    ``same group`` concerns only near-duplicates, and only rankings that name an image.
    """
    answers: dict[str, Any] = {}
    for rule in RULES:
        truth = found.truth(rule)
        row = {"auroc": auroc(value[truth], value[~truth], found.group[truth])}
        if place is not None:
            hit = (found.group[place] == found.group)[truth].astype(np.float64)
            row["same group"] = share(hit, found.group[truth])
        answers[rule] = row
    return answers


def embeddings(
    encoder: torch.nn.Module,
    images: Tensor,
    index: Int64[np.ndarray, " n"],
    noise: Any,
    store: Path,
    device: str = "cpu",
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """φ of all images under LoGra fitted on them, and their projected gradients; one pass."""
    found = []
    for curvature in (LoGra(), Uncurved()):
        scorer = InfluenceScorer(
            encoder, Invariance(noise), curvature, device=device, store=store,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        found.append(scorer.embed(images, index).float().cpu())
    return found[0], found[1]


def rankings(phi: Tensor, gradients: Tensor, found: Found) -> dict[str, Any]:
    """The :func:`quality` of all rankings that need gradients."""
    rows = {}
    for name, vectors in (("influence", phi), ("gradients", gradients)):
        for kind, near in zip((name, f"{name}, cosine"), nearest(vectors), strict=True):
            rows[kind] = quality(found, near.value, near.place)
    # The lowest scores are claimed to be those of near duplicates.
    rows["self-score"] = quality(found, -phi.double().square().sum(1).numpy())
    return rows


def rounding(phi: Float[Tensor, "n m"]) -> dict[str, dict[str, float]]:
    """The effect of half precision of φ: rank correlation of influences, and nearest images kept.

    For :data:`QUERIES` images with all others, compared with φ in float64.
    """
    some = torch.from_numpy(np.linspace(0, len(phi) - 1, min(QUERIES, len(phi))).astype(np.int64))
    exact = phi.double()
    expected = (exact[some] @ exact.T).numpy()
    rows = {}
    for dtype in (torch.float32, *HALVES):
        found = (phi[some] @ phi.to(dtype).float().T).double().numpy()
        for values in (expected, found):
            values[np.arange(len(some)), some] = -np.inf
        rows[str(dtype).removeprefix("torch.")] = {
            "bytes per image": phi.shape[1] * dtype.itemsize,
            "lowest rank correlation": round(float(rank_correlation(found, expected).min()), 6),
            "nearest kept": float((found.argmax(1) == expected.argmax(1)).mean()),
        }
    return rows


def measure(one: Scored, found: Found, folder: Path) -> dict[str, Any]:
    """All results for one encoder; gradients are kept in ``folder`` meanwhile."""
    answers: dict[str, Any] = {}
    for number, (name, noise) in enumerate(NOISES.items()):
        phi, gradients = embeddings(
            one.encoder, one.images, one.index, noise, folder / f"traced-{number}", one.device
        )
        answers[name] = rounded(rankings(phi, gradients, found))
        if number == 0:
            answers["rounding"] = rounding(phi)
    _, near = nearest(extract(one.encoder, one.part.tensor()))
    answers[WITHOUT] = {"representation": rounded(quality(found, near.value, near.place))}
    return answers


def reproduce(task: Task) -> str:
    """Measure every recorded self-supervised encoder, record the results, and draw them.

    Each encoder is recorded when it is done, and a record of the same images is continued. Until
    then, a stopped run's gradients are kept in the runs' folder.
    """
    from influence_lab.figures import save, use_style

    images = data_for(task.profile, "train")
    chosen = of_class(images)
    runs = [(method, task.seed) for method in METHODS if method != "supervised"]
    scored = available(task, runs, chosen)
    part = images.subset(chosen.index)
    found = find(part.images)
    path = (task.root or results.results_root()) / task.profile / "nearest.json"
    record = results.load_record(task.profile, "nearest", task.root) or {"methods": {}}
    for (method, seed), one in scored.items():
        origin = one.vectors.origin
        assert origin is not None
        weights, known = origin["encoder_sha256"], record["methods"].get(method)
        if known is not None and _same(known, weights, images.digest):
            continue
        begin = time.perf_counter()
        folder = run_folder(method, task.profile, seed, task.runs) / "traced"
        answers = measure(one, found, folder)
        answers["encoder_sha256"] = weights
        answers["provenance"] = results.provenance(
            task.command, task.profile, task.seed,
            f"{images.name} train, {len(part):,} of {len(images):,} images ({chosen.name})",
            images.digest, results.device_name(task.device), time.perf_counter() - begin,
        )  # fmt: skip
        record["methods"][method] = answers
        record = {
            "class": chosen.name,
            "images": len(part),
            "near duplicates": {rule: int(found.truth(rule).sum()) for rule in RULES},
            "methods": {m: record["methods"][m] for m in METHODS if m in record["methods"]},
            "provenance": answers["provenance"],
        }
        results.save_json(path, record)
        shutil.rmtree(folder, ignore_errors=True)
    use_style()
    save(figure(record), task.picture)
    name = next(iter(NOISES))
    return f"the nearest {chosen.name} by influence is of the same group: " + ", ".join(
        f"{LABELS[method]} {Estimate(*rows[name]['influence, cosine'][RULES[1]]['same group'])}"
        for method, rows in record["methods"].items()
    )


def _same(known: dict[str, Any], weights: str, images: str) -> bool:
    """Whether recorded results belong to this encoder and these images."""
    return known["encoder_sha256"] == weights and known["provenance"]["data_sha256"] == images


def table(record: dict[str, Any], rule: str = RULES[1]) -> dict[str, dict[str, dict[str, Any]]]:
    """The results row by row as they are shown: by ranking and noise, then by method."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for method, answers in record["methods"].items():
        for noise in (*NOISES, WITHOUT):
            for ranking, found in answers[noise].items():
                name = ranking if noise == WITHOUT else f"{ranking}; {noise}"
                rows.setdefault(name, {})[method] = found[rule]
    return dict(sorted(rows.items(), key=lambda row: _place(row[0])))


def _place(name: str) -> tuple[int, str]:
    order = "influence", "gradients", "representation", "self-score"
    return order.index(name.split(",")[0].split(";")[0]), name


def figure(record: dict[str, Any], rule: str = RULES[1]) -> Any:
    """Both results for every ranking with intervals, one marker per method."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    rows = table(record, rule)
    figure, axes = plt.subplots(
        1, 2, figsize=(WIDTH, 0.55 * len(rows) + 1.4), sharey=True, sharex=True
    )
    markers = dict(zip(METHODS, "os^D", strict=True))
    kinds = {"same group": "nearest image of the same group", "auroc": "AUROC of its value"}
    for axis, (kind, label) in zip(axes, kinds.items(), strict=True):
        for row, answers in enumerate(rows.values()):
            for number, (method, found) in enumerate(answers.items()):
                if kind not in found:
                    continue
                value, low, high = found[kind]
                axis.errorbar(
                    value, row + 0.2 * (number - 1), xerr=[[value - low], [high - value]],
                    marker=markers[method], color=COLORS[method], capsize=2, linewidth=1.4,
                    linestyle="", label=LABELS[method] if kind == "auroc" and row == 0 else None,
                )  # fmt: skip
        axis.set(xlabel=label, xlim=(-0.02, 1.02))
    axes[1].axvline(0.5, color=COLORS["grey"], linestyle=":", linewidth=1.2)
    axes[0].set(yticks=range(len(rows)), yticklabels=[name.replace("; ", "\n") for name in rows])
    axes[0].invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3)
    return figure
