"""Figures 7 and 8: faces with extreme scores, and their groups.

FairFace with a BYOL encoder trained on it; in profile ``tiny`` the stand-in of
:func:`..datasets.standin_fairface`. The score is compared with its rivals (loss, gradient norm) and
one control, the same network before training. Base rates, intervals and tests for sampling without
replacement are added. The paper lacks them, and a histogram cannot be interpreted without them.
"""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from influence_lab.datasets import Grouped, Images, standin_fairface
from influence_lab.datasets.fairface import load_fairface
from influence_lab.experiments.claims import Reading, Region, above, below, reading, weakest
from influence_lab.experiments.group_shares import Column, first, groups, looks, top_of
from influence_lab.experiments.scored import RIVALS, score_with_rivals
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import Estimate, gap, rounded
from influence_lab.pretrain import pretrain, run_folder
from influence_lab.pretrain.methods import build
from influence_lab.pretrain.resnets import CifarResNet18, normalise
from influence_lab.pretrain.settings import FAIRFACE_SIZES, fairface_settings
from influence_lab.records import results
from influence_lab.records.keys import described
from influence_lab.records.vectors import Vectors
from influence_ssl import GaussianNoise, InfluenceScorer, Invariance, LoGra
from influence_ssl.files.writing import replacing

NAME = "fairface-byol"
NOISE = GaussianNoise()
SHOWN, THUMBNAIL = 10, 64
STAND_IN = 2048
RANKINGS = ("score", *RIVALS, "untrained")
LINK = "experiments/fairness.html#paper-fig-"
# FairFace's training images by race: the 86,744 rows of fairface_label_train.csv, counted in a copy
# of it at https://github.com/tayo2910/gee, commit 65d3ad85.
FAIRFACE = {
    "White": 16_527,
    "Latino_Hispanic": 13_367,
    "Indian": 12_319,
    "East Asian": 12_287,
    "Black": 12_233,
    "Southeast Asian": 10_795,
    "Middle Eastern": 9_216,
}


def people(profile: str) -> Grouped:
    """FairFace's training images at the profile's size; its stand-in in profile ``tiny``."""
    if profile == "tiny":
        return standin_fairface(STAND_IN)
    return load_fairface("train", FAIRFACE_SIZES[profile])


class Prepared(Dataset):
    """Normalised images one at a time: all of FairFace as floats would not fit into memory."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> tuple[Tensor]:
        return (normalise(torch.from_numpy(self.images.images[k].transpose(2, 0, 1).copy())),)


def encoder_of(task: Task, images: Images) -> CifarResNet18:
    """The recorded encoder; if there is none, it is trained (or its training is resumed)."""
    place = results.folder_of(task.profile, NAME, task.seed, task.root)
    if not (place / "encoder.safetensors").is_file():
        settings = fairface_settings(task.profile)
        folder = run_folder(NAME, task.profile, task.seed, task.runs)
        run = pretrain(settings, task.seed, images, None, folder, task.device)
        results.save_encoder(run.encoder, place / "encoder.safetensors")
        seconds = sum(epoch["seconds"] for epoch in run.epochs)
        record = {"settings": asdict(settings), "epochs": run.epochs}
        results.save_json(place / "training.json", record | _origin(task, images, seconds))
    found = results.load_encoder(task.profile, NAME, task.seed, task.root)
    assert found is not None
    return found


def rankings(task: Task, images: Images) -> dict[str, Column]:
    """Magnitudes by each of :data:`RANKINGS`; earlier scores are read instead of recomputed."""
    encoder = encoder_of(task, images)
    place = results.folder_of(task.profile, NAME, task.seed, task.root)
    weights = (place / "encoder.safetensors").read_bytes()
    origin = {
        "data": images.name,
        "data_sha256": images.digest,
        "encoder_sha256": hashlib.sha256(weights).hexdigest(),
        "curvature": described(LoGra()),
        "noise": described(NOISE),
    }
    vectors = Vectors(place / "vectors.npz", origin)
    # Not trained, but the very weights that the training began with.
    before = build(fairface_settings(task.profile), len(images.classes), task.seed).encoder
    for network, kinds in ((encoder, ("score", *RIVALS)), (before, ("untrained",))):
        missing = [kind for kind in kinds if kind not in vectors]
        if not missing:
            continue
        begin = time.perf_counter()
        found = score(network.eval(), images, task.device)
        seconds = time.perf_counter() - begin
        for kind in missing:
            note = {"seconds": round(seconds / len(kinds), 1), "code": results.code_version()}
            magnitude = found["score" if kind == "untrained" else kind]
            vectors.add(kind, magnitude, **note, device=results.device_name(task.device))
    return {kind: vectors[kind] for kind in RANKINGS}


def score(encoder: CifarResNet18, images: Images, device: str = "cpu") -> dict[str, Column]:
    """The score and its rivals for one draw of :data:`NOISE`, with the curvature of all images."""
    scorer = InfluenceScorer(
        encoder, Invariance(NOISE), device=device, progress=sys.stderr.isatty()
    )
    return score_with_rivals(scorer, Prepared(images), np.arange(len(images)))


def measure(grouped: Grouped, ranked: dict[str, Column]) -> dict[str, Any]:
    """The data of the figures and claims, in the form of a record."""
    images = grouped.images
    return {
        "images": len(images),
        "top": top_of(len(images)),
        "stand in": grouped.stand_in,
        "attribute": next(iter(grouped.attributes)),
        "left out": {
            "missing": len(grouped.missing),
            "unreadable": len(grouped.unreadable),
            "in words": grouped.left_out(),
        },
        "rankings": {kind: groups(grouped, magnitude) for kind, magnitude in ranked.items()},
        "appearance": rounded(looks(images, ranked["score"])),
    }


def shown(grouped: Grouped, magnitude: Column) -> dict[str, Any]:
    """Names, groups and thumbnails (10, h, w, 3) of the 10 highest and the 10 lowest."""
    found = {}
    attribute = next(iter(grouped.attributes.values()))
    for which, sign in (("highest", 1), ("lowest", -1)):
        index = first(sign * magnitude, SHOWN)
        found[which] = {
            "names": [grouped.images.names[i] for i in index],
            "groups": [str(attribute[i]) for i in index],
            "pictures": np.stack([_thumbnail(grouped.images.images[i]) for i in index]),
        }
    return found


def _thumbnail(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "i j 3"]:
    if len(pixels) <= THUMBNAIL:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def reproduce(task: Task) -> str:
    """Train BYOL, score, compare groups, record, and draw Figure 7 or 8."""
    from influence_lab.figures import save, use_style

    grouped = people(task.profile)
    ranked = rankings(task, grouped.images)
    place = (task.root or results.results_root()) / task.profile
    extremes = shown(grouped, ranked["score"])
    pictures = {which: found.pop("pictures") for which, found in extremes.items()}
    notes = Vectors(
        results.folder_of(task.profile, NAME, task.seed, task.root) / "vectors.npz"
    ).notes
    seconds = sum(note["seconds"] for note in notes.values())
    record = measure(grouped, ranked) | {"shown": extremes}
    record |= _origin(task, grouped.images, seconds)
    results.save_json(place / "fairness.json", record)
    with replacing(place / "fairness.npz", parents=True) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **pictures)
    use_style()
    figure = figure_7(record, pictures) if task.result == "fig-7" else figure_8(record)
    save(figure, task.picture)
    column = record["rankings"]["score"]["columns"][0]
    shares = [
        f"{row['value']} {row['share']:.0%} (base rate {row['base_rate']:.0%})"
        for row in column["values"]
    ]
    return f"among the {record['top']} highest: {', '.join(shares)}; p {column['p_uneven']:.2g}"


def _origin(task: Task, images: Images, seconds: float) -> dict[str, Any]:
    # Both figures have one record, so one command stands for it.
    command = replace(task, result="fig-8").command
    return {
        "provenance": results.provenance(
            command, task.profile, task.seed, f"{images.name} train ({len(images):,} images)",
            images.digest, results.device_name(task.device), seconds,
        )
    }  # fmt: skip


def pictures_of(profile: str, root: Path | None = None) -> dict[str, UInt8[np.ndarray, "n h w 3"]]:
    """The recorded thumbnails."""
    with np.load((root or results.results_root()) / profile / "fairness.npz") as file:
        return {which: file[which] for which in ("highest", "lowest")}


def figure_7(record: dict[str, Any], pictures: dict[str, UInt8[np.ndarray, "n h w 3"]]) -> Any:
    """The ten highest above the ten lowest, each under its group."""
    import matplotlib.pyplot as plt

    from influence_lab.figures import WIDTH

    figure = plt.figure(figsize=(WIDTH, 6.4))
    parts: Any = figure.subfigures(2, 1)
    for part, which in zip(parts, pictures, strict=True):
        part.suptitle(f"{SHOWN} {which}", weight="bold")
        axes = part.subplots(2, SHOWN // 2)
        texts = record["shown"][which]["groups"]
        for axis, picture, text in zip(axes.flat, pictures[which], texts, strict=True):
            axis.imshow(picture)
            axis.set_title(_wrapped(text), fontsize=11, pad=3)
            axis.set_axis_off()
    return figure


def by_chance(k: int = 100) -> dict[str, tuple[float, int, int]]:
    """Mean and 95 % range of the number of each race among k faces drawn from FairFace at random.

    Counts in a draw without replacement are hypergeometric.
    """
    from scipy.stats import hypergeom

    total = sum(FAIRFACE.values())
    found = {}
    for race, count in FAIRFACE.items():
        low, high = hypergeom.ppf([0.025, 0.975], total, count, k)
        found[race] = (k * count / total, int(low), int(high))
    return found


def _draw_chance(axis: Any) -> None:
    from influence_lab.figures import COLORS

    rows = sorted(by_chance().items(), key=lambda row: row[1][0])
    at = np.arange(len(rows))
    mean, low, high = np.array([numbers for _, numbers in rows]).T
    axis.errorbar(
        mean, at, xerr=[mean - low, high - mean], fmt="D", color=COLORS["black"], capsize=3,
        elinewidth=1.2, markersize=6,
    )  # fmt: skip
    axis.set_yticks(at, [_wrapped(race) for race, _ in rows])
    axis.set_xlim(0, 1.1 * high.max())
    axis.set_title("FairFace: expected among 100, and 95 % range", fontsize=12)
    axis.set_xlabel("faces among 100 drawn at random")


def figure_8(record: dict[str, Any]) -> Any:
    """Share of each group among the top with its interval, and its base rate as a tick.

    If the data stand in for FairFace, a second panel shows the counts expected by chance from the
    real faces.
    """
    import matplotlib.pyplot as plt

    from influence_lab.figures import COLORS, WIDTH

    rows = sorted(record["rankings"]["score"]["columns"][0]["values"], key=lambda r: r["share"])
    heights = [0.45 * len(rows), 0.45 * len(FAIRFACE)][: 1 + record["stand in"]]
    figure, axes = plt.subplots(
        len(heights), 1, figsize=(WIDTH, 1.5 * len(heights) + sum(heights)), squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    axis = axes[0, 0]
    if record["stand in"]:
        _draw_chance(axes[1, 0])
    at = np.arange(len(rows))
    share = np.array([row["share"] for row in rows])
    low, high = np.array([row["interval"] for row in rows]).T
    axis.barh(at, 100 * share, 0.6, color=COLORS["highest"], label=f"top {record['top']}")
    axis.errorbar(
        100 * share, at, xerr=100 * np.array([share - low, high - share]), fmt="none",
        ecolor=COLORS["black"], elinewidth=1.2, capsize=3, label="95 % interval",
    )  # fmt: skip
    base = [100 * row["base_rate"] for row in rows]
    axis.plot(
        base, at, "D", color=COLORS["black"], markersize=8, markeredgecolor="white",
        label="base rate",
    )  # fmt: skip
    axis.set_yticks(at, [_wrapped(row["value"]) for row in rows])
    axis.set_xlim(0, 100 * max(*high, *(row["base_rate"] for row in rows)) * 1.05)
    axis.set_xlabel(f"share among the {record['top']} highest scores in %")
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1, handlelength=1.2)
    return figure


def _wrapped(text: str) -> str:
    return text.replace("_", " ").replace(" ", "\n", 1)


# What Section 4.5 says of Figure 8, race by race: more, or fewer, than the base rate.
RACES = {
    "Black": ("disproportionately represented", True),
    "Middle Eastern": ("disproportionately represented", True),
    "East Asian": ("notably underrepresented", False),
    "Southeast Asian": ("notably underrepresented", False),
}
# And of Figure 7: pose and light. The quantity that stands for it, and on which side of 1/2.
LOOKS = {
    ("highest", "symmetry"): ("highest: side-turned faces (less symmetric than others)", False),
    ("highest", "brightness"): ("highest: suboptimal light (darker than others)", False),
    ("highest", "contrast"): ("highest: suboptimal light (less contrast than others)", False),
    ("lowest", "symmetry"): ("lowest: front-facing (more symmetric than others)", True),
    ("lowest", "brightness"): ("lowest: well lit (brighter than others)", True),
}


def _side(bound: float, more: bool) -> Region:
    return above(bound) if more else below(bound)


def claims(root: Path | None = None) -> list[Reading]:
    """Section 4.5: pose and light of the extremes, and each race's share against its base rate."""
    found = results.largest_record("fairness", root)
    profile, record = found if found is not None else ("", {})
    data = record["provenance"]["data"] if record else ""
    stand_in = bool(record) and record["stand in"]
    column = record["rankings"]["score"]["columns"][0] if record else {"values": []}

    def row(
        name: str, words: str, paper: str, estimate: Estimate | None, claimed: Region, figure: int
    ) -> Reading:
        return reading(
            name, words, paper, estimate, claimed, f"{LINK}{figure}", data,
            "BYOL encoder, one draw", profile, stand_in=stand_in,
        )  # fmt: skip

    rows = []
    for (which, what), (words, more) in LOOKS.items():
        estimate = Estimate(*record["appearance"][which][what]) if record else None
        paper = "> 1/2" if more else "< 1/2"
        rows.append(
            row(f"fig-7-{which}-{what}", f"FairFace, {words}", paper, estimate,
                _side(0.5, more), 7)
        )  # fmt: skip
    ratios = {value["value"]: _ratio(value) for value in column["values"]}
    for race, (words, more) in RACES.items():
        name = f"fig-8-{race.lower().replace(' ', '-')}"
        text = f"FairFace: {race} faces {words} among the top 100 (share over base rate)"
        rows.append(
            row(name, text, "> 1" if more else "< 1", ratios.get(race), _side(1.0, more), 8)
        )
    names = ("Black", "Middle Eastern", "White", "East Asian", "Southeast Asian")
    white = None
    if all(race in ratios for race in names):
        black, middle, own, *asian = (ratios[race] for race in names)
        white = weakest([gap(black, own), gap(middle, own), *(gap(own, one) for one in asian)])
    text = (
        "FairFace: White faces come next, after Black and Middle Eastern and before East and "
        "Southeast Asian ones (share over base rate, least step)"
    )
    rows.append(row("fig-8-white", text, "> 0", white, above(0.0), 8))
    largest = max(ratios.values(), key=lambda ratio: ratio.value) if ratios else None
    text = "FairFace: uneven racial distribution of the top 100 (largest share over base rate)"
    rows.append(
        replace(row("fig-8-uneven", text, "> 1", largest, above(1.0), 8), cannot=_even(column))
    )
    return rows


def _even(column: dict[str, Any]) -> str:
    """Why the counts do not show unevenness; empty if they do."""
    p = column.get("p_uneven", 0.0)
    return "" if p < 0.05 else f"counts as uneven as these come up by chance, p = {p:.2f}"


def _ratio(value: dict[str, Any]) -> Estimate:
    low, high = value["interval"]
    base = value["base_rate"]
    return Estimate(value["share"] / base, low / base, high / base)
