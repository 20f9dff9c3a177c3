"""Figures 4 and 12: are the automobiles with the lowest influence near-duplicates?

The near-duplicates in the class are found without any encoder, by pixel correlation and a
perceptual hash. We then count them at the end of each ranking: the score as recorded for all
training images, the score with the curvature of the class alone, the same with one noise for all
images (equal images then have equal gradients), and the rivals. :mod:`.duplicates` uses planted
duplicates instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8

from influence_lab.datasets import Images
from influence_lab.experiments.claims import Reading, Region, above, both, counts, reading
from influence_lab.experiments.distributions import LABELS, METHODS
from influence_lab.experiments.scored import Scored, Selection, available, provenance, whole
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import Estimate, rounded
from influence_lab.measures.detection import auroc, precision_at
from influence_lab.measures.pixel_duplicates import BITS, RULES, Found, find
from influence_lab.pretrain.probes import extract
from influence_lab.pretrain.views import SharedNoise
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_lab.records.thumbnails import load_sheet, save_sheet
from influence_lab.theory.linear_network import duplicate_leverage
from influence_ssl import GaussianNoise
from influence_ssl.analysis.neighbours import nearest, unit

CLASS = "automobile"
COUNTS = (5, 18, 100)
SHOWN = 18
LINK = "experiments/near-duplicates.html"
# Section 4.2: near duplicates among the five lowest automobiles.
PAPER = {"simclr": 2, "byol": 5, "barlow": 1}


def of_class(images: Images) -> Selection:
    """The automobiles; all images of a data set without that class."""
    if CLASS not in images.classes:
        return Selection(images, np.arange(len(images)), "all")
    return Selection(images, np.flatnonzero(images.labels == images.classes.index(CLASS)), CLASS)


def quality(key: Float[np.ndarray, " n"], found: Found) -> dict[str, dict[str, Estimate]]:
    """AUROC, and precision among the first 5, 18 and 100, of a ``key`` large for duplicates.

    For the AUROC's interval, a group of near-duplicates is one observation. Precision has Wilson's
    interval.
    """
    truths = {rule: found.truth(rule) for rule in RULES}
    return {
        rule: {
            "auroc": auroc(key[truth], key[~truth], found.group[truth]),
            **{str(k): precision_at(key, truth, k) for k in COUNTS},
        }
        for rule, truth in truths.items()
    }


def keys_of_pixels(part: Images, found: Found) -> dict[str, Float64[np.ndarray, " n"]]:
    """Rivals that need no encoder; large for likely duplicates."""
    return {
        "perceptual hash": -found.bits.astype(np.float64),
        "pixel variance": -part.images.reshape(len(part), -1).var(1, dtype=np.float64),
        "random": np.random.default_rng(0).permutation(len(part)).astype(np.float64),
    }


def keys_of(scored: Scored, score: Float64[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """The score and its rivals for one encoder, with the sign that puts duplicates first."""
    own = scored.with_rivals(GaussianNoise(), 0)
    z = extract(scored.encoder, scored.part.tensor())
    return {
        "score": -score,
        "score, curvature of the class": -own["score"],
        "the same, one noise for all": -scored.score(SharedNoise(), 0),
        "loss": -own["loss"],
        "gradient norm": -own["gradient norm"],
        "representation kNN": nearest(unit(z)).similarity[:, 0].astype(np.float64),
    }


def predicted_drop(mean: float, blocks: int, n: int, m: int) -> float:
    r"""What m exact copies lose of ln |I|, were their gradients equal: :math:`\ln(1 + (m-1)h)`.

    h: the leverage of an image with the mean score, where ``mean`` is divided evenly among the
    curvature's ``blocks``, fitted on n gradients (the theorem on the leverage of duplicates).
    """
    h = mean / (blocks * n)
    return float(np.log(h / duplicate_leverage(h, m)))


def reproduce(task: Task) -> str:
    """Rank the class with every recorded encoder, record, and draw Figure 4 or 12."""
    from influence_lab.figures import save, use_style

    images = data_for(task.profile, "train")
    chosen = of_class(images)
    scored = available(task, [(method, task.seed) for method in METHODS], chosen)
    part = images.subset(chosen.index)
    found = find(part.images)
    every = {method: whole(task, method, images) for method, _ in scored}
    scores = {method: every[method][chosen.index] for method in every}
    lowest = {m: np.argsort(score, kind="stable")[:SHOWN] for m, score in scores.items()}
    groups = found.largest(SHOWN, 6)
    record: dict[str, Any] = {
        "class": chosen.name,
        "images": len(part),
        "found": {
            "pixels": int(found.truth("pixels").sum()),
            "hash": int((found.bits <= BITS).sum()),
            "pixels or hash": int(found.truth("pixels or hash").sum()),
            "groups": found.sizes()[found.sizes() > 1].tolist(),
        },
        "methods": {
            m: _qualities(keys_of(one, scores[m]), found) for (m, _), one in scored.items()
        },
        "without an encoder": _qualities(keys_of_pixels(part, found), found),
        "copies": {m: _copies(one, every[m], scores[m], found) for (m, _), one in scored.items()},
        "lowest": {method: _frames(found, rows) for method, rows in lowest.items()},
        "largest groups": _frames(found, groups),
        "lower": {m: [int((s < s[i]).sum()) for i in groups] for m, s in scores.items()},
        "provenance": provenance(task, list(scored.values())),
    }
    folder = (task.root or results.results_root()) / task.profile
    shown = np.concatenate([*lowest.values(), groups])
    save_sheet(part.images[shown], SHOWN, folder / "near-duplicates.jpg")
    results.save_json(folder / "near-duplicates.json", record)
    use_style()
    figure = figure_4 if task.result == "fig-4" else figure_12
    save(figure(task.profile, record, task.root), task.picture)
    rows = {m: keys["score"][RULES[1]] for m, keys in record["methods"].items()}
    return f"near duplicates among the lowest of {chosen.name}: " + ", ".join(
        f"{LABELS[m]} {row['18'][0]:.0%} of 18, AUROC {row['auroc'][0]:.3f}"
        for m, row in rows.items()
    )


def _qualities(keys: dict[str, np.ndarray], found: Found) -> dict[str, Any]:
    return rounded({name: quality(key, found) for name, key in keys.items()})


def _copies(
    one: Scored, every: np.ndarray, score: np.ndarray, found: Found
) -> dict[str, float | dict[str, float]]:
    """:func:`predicted_drop` for a pair and the largest group, and the spread of the scores."""
    kinds = torch.nn.Conv2d, torch.nn.Linear
    blocks = sum(isinstance(module, kinds) for module in one.encoder.modules())
    own = one.with_rivals(GaussianNoise(), 0)["score"]
    sets = {"all images": every, "the class": own}
    return {
        name: {
            str(m): round(predicted_drop(float(v.mean()), blocks, len(v), m), 4)
            for m in (2, int(found.sizes().max()))
        }
        for name, v in sets.items()
    } | {"deviation of ln|I|": round(float(np.log(score[score > 0]).std()), 4)}


def _frames(found: Found, rows: Int64[np.ndarray, " k"]) -> dict[str, list[Any]]:
    """Positions in the class, the rule that found each, and its group, counted from 1."""
    hash_alone = found.truth("pixels or hash") & ~found.truth("pixels")
    rule = np.where(found.truth("pixels"), "pixels", np.where(hash_alone, "hash", ""))
    return {
        "position": rows.tolist(),
        "rule": rule[rows].tolist(),
        "group": [int(found.group[i]) + 1 if rule[i] else 0 for i in rows],
    }


def thumbnails(
    profile: str, record: dict[str, Any], root: Path | None = None
) -> dict[str, UInt8[np.ndarray, "k s s 3"]]:
    """The recorded images: the lowest of each method, and those of the ``largest groups``."""
    folder = results.results_root() if root is None else root
    images = load_sheet(folder / profile / "near-duplicates.jpg", SHOWN)
    return dict(
        zip(
            [*record["lowest"], "largest groups"],
            np.split(images, range(SHOWN, len(images), SHOWN)),
            strict=True,
        )
    )


def _picture(axis: Any, image: np.ndarray, rule: str, group: int) -> None:
    """An image; a near-duplicate has a frame and the number of its group."""
    from matplotlib.patches import Rectangle

    from influence_lab.figures import COLORS

    axis.imshow(image, interpolation="none")
    axis.set_axis_off()
    if rule:
        line = "-" if rule == "pixels" else (0, (2, 1))
        axis.add_patch(
            Rectangle((0, 0), 1, 1, transform=axis.transAxes, fill=False, linewidth=5,
                      edgecolor=COLORS["vermilion"], linestyle=line)
        )  # fmt: skip
        axis.text(
            0.06, 0.92, str(group), transform=axis.transAxes, ha="left", va="top", fontsize=11,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip


def _lowest(
    profile: str, record: dict[str, Any], root: Path | None, count: int, columns: int
) -> Any:
    import matplotlib.pyplot as plt

    from influence_lab.figures import WIDTH

    pictures = thumbnails(profile, record, root)
    rows = -(-count // columns)
    heights = [0.35 + rows * WIDTH / columns if m in pictures else 0.7 for m in METHODS]
    figure = plt.figure(figsize=(WIDTH, sum(heights)))
    parts: Any = figure.subfigures(len(METHODS), 1, height_ratios=heights)
    for part, method in zip(parts, METHODS, strict=True):
        if method not in pictures:
            part.text(0.5, 0.5, f"{LABELS[method]}: not recorded yet", ha="center", va="center")
            continue
        frames = record["lowest"][method]
        hits = sum(bool(rule) for rule in frames["rule"][:count])
        noun = "near duplicate" if hits == 1 else "near duplicates"
        part.suptitle(f"{LABELS[method]}: {hits} {noun} of {count}")
        axes = part.subplots(rows, columns, squeeze=False).flat
        looks = zip(pictures[method], frames["rule"], frames["group"], strict=True)
        for axis, look in zip(axes, list(looks)[:count], strict=True):
            _picture(axis, *look)
    return figure


def figure_4(profile: str, record: dict[str, Any], root: Path | None = None) -> Any:
    """The five lowest of each method, near-duplicates framed, or a message if data are missing."""
    return _lowest(profile, record, root, COUNTS[0], COUNTS[0])


def figure_12(profile: str, record: dict[str, Any], root: Path | None = None) -> Any:
    """The eighteen lowest of each method, as :func:`figure_4`."""
    return _lowest(profile, record, root, SHOWN, 6)


def figure_groups(
    profile: str, record: dict[str, Any], method: str, root: Path | None = None
) -> Any:
    """Images in the largest groups of near-duplicates, each with its rank by a method's score."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import WIDTH

    columns = 6
    frames, n = record["largest groups"], record["images"]
    figure, axes = plt.subplots(
        SHOWN // columns, columns, figsize=(WIDTH, SHOWN // columns * (WIDTH / columns + 0.3))
    )
    looks = zip(
        thumbnails(profile, record, root)["largest groups"], frames["rule"], frames["group"],
        record["lower"][method], strict=True,
    )  # fmt: skip
    for axis, (image, rule, group, lower) in zip(axes.flat, looks, strict=True):
        _picture(axis, image, rule, group)
        axis.set_title(f"{lower / n:.0%}", fontsize=11, pad=3)
    return figure


def figure_auroc(record: dict[str, Any], rule: str = RULES[1]) -> Any:
    """AUROC of every ranking with its interval, one panel per method."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    methods = record["methods"]
    alone = record["without an encoder"]
    names = [*next(iter(methods.values())), *alone]
    columns = 2
    rows = -(-len(methods) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, 0.6 + rows * (0.36 * len(names) + 0.4)), sharex=True,
        sharey=True, squeeze=False,
    )  # fmt: skip
    for axis in axes.flat[len(methods) :]:
        axis.set_axis_off()
    for axis, (method, found) in zip(axes.flat, methods.items(), strict=False):
        axis.axvline(0.5, color=COLORS["black"], linestyle=":", linewidth=0.8)
        for place, name in enumerate(names):
            one = alone[name] if name in alone else found.get(name)
            if one is None:
                continue
            value, low, high = one[rule]["auroc"]
            color = COLORS["highest" if name == "score" else "grey"]
            axis.plot([low, high], [place, place], color=color)
            axis.plot(value, place, "o" if name == "score" else "s", color=color)
        axis.set(title=LABELS[method], xlim=(-0.03, 1.03), ylim=(len(names) - 0.5, -0.5))
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    wrapped = [name.replace(", ", ",\n").replace(" kNN", "\nkNN") for name in names]
    axes[0, 0].set_yticks(range(len(names)), wrapped)
    for axis in axes[-1]:
        axis.set_xlabel("AUROC")
    return figure


def claims(root: Path | None = None) -> list[Reading]:
    """Sections 4.2 and B.4: near duplicates among the 5 and the 18 lowest, and in the whole order.

    Counts among the five are reproduced by the same count, whichever images these are.
    """
    largest = results.largest_record("near-duplicates", root)
    profile, record = largest if largest is not None else ("", {"methods": {}})
    data = record.get("provenance", {}).get("data", "")
    rows = []

    def add(name: str, words: str, paper: str, key: str, claimed: Region, anchor: str) -> None:
        method = name.split("-")[2]
        found = record["methods"].get(method, {}).get("score", {}).get(RULES[1])
        estimate = Estimate(*found[key]) if found else None
        rows.append(
            reading(
                name, f"{LABELS[method]}, CIFAR-10 automobiles: {words}", paper,
                both(estimate, profile, method, "duplicates", key, root=root), claimed,
                f"{LINK}#{anchor}", data, f"{LABELS[method]} encoder", profile,
                stand_in=profile == "tiny",
            )
        )  # fmt: skip

    for method, count in PAPER.items():
        add(f"fig-4-{method}-five", "share of near duplicates among the 5 lowest",
            f"{count} of 5", "5", counts(count, COUNTS[0]), "paper-fig-4")  # fmt: skip
        add(f"fig-4-{method}-auroc", "a low score marks near duplicates (AUROC)",
            "consistently", "auroc", above(0.5), "paper-fig-4")  # fmt: skip
    for method in PAPER:
        add(f"fig-12-{method}-most", "share of near duplicates among the 18 lowest, above half",
            "most", "18", above(0.5), "paper-fig-12")  # fmt: skip
    add("fig-12-byol-all", "share of near duplicates among the 18 lowest", "all", "18",
        counts(SHOWN, SHOWN), "paper-fig-12")  # fmt: skip
    return rows
