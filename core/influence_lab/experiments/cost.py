"""The total cost of scoring: a whole call over the best plain pass on the same pairs.

A call's time is modelled as affine in the number of images, with a fixed cost and a cost per pair.
Both follow from whole calls of ``InfluenceScorer.score`` on :data:`FEW` images and on a batch,
timed next to the plain pass. The curvature is added: its covariances, solve and forms depend on the
number of images and are timed on random gradients. One direct call on many images checks the sum.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from influence_lab.benchmark.timing import (
    CLOCKS,
    WARM_UP,
    pairs_of,
    plain_passes,
    quartiles,
    seconds_of,
    timed,
)
from influence_lab.experiments.task import Task
from influence_lab.pretrain.resnets import cifar_resnet18, normalise
from influence_lab.pretrain.train import fast_in_bf16
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_ssl import InfluenceScorer, LoGra
from influence_ssl.curvature import CHUNK, Gradients, Layer

FEW = 2
MAIN = "rank 16"
TOTALS = (1_024, 50_000)
"""Numbers of images for which a whole call is stated; the targets apply to the first."""


class Setting(NamedTuple):
    """A scorer's setting, and the target for the cost of a whole call."""

    rank: int
    joint: bool
    bf16: bool
    aim: float | None = None


SETTINGS = {
    MAIN: Setting(16, False, False, 0.68),
    "rank 16, joint": Setting(16, True, False, 0.72),
    "rank 32": Setting(32, False, False),
    "rank 64": Setting(64, False, False),
    "rank 16, bfloat16": Setting(16, False, True, 0.34),
    "rank 16, joint, bfloat16": Setting(16, True, True),
    "rank 32, bfloat16": Setting(32, False, True),
    "rank 64, bfloat16": Setting(64, False, True),
}
EMULATED = "rank 16, bfloat16"
"""The only bfloat16 setting that is timed on processors that merely emulate it."""


class Sizes(NamedTuple):
    """The encoder's width, images in a batch, rounds; a batch and rounds where bf16 is emulated."""

    width: int
    batch: int
    rounds: int
    slow_batch: int
    slow_rounds: int
    direct: int


SIZES = {"tiny": Sizes(8, 128, 3, 8, 2, 256)}
LARGE = Sizes(64, 64, 10, 8, 2, TOTALS[0])

Times = dict[str, float]


def total(record: dict[str, Any], name: str, images: int = TOTALS[-1]) -> float:
    """The recorded cost of a whole call on so many images, over a plain pass, by the wall clock."""
    return record["settings"][name]["wall"]["total"][str(images)]


def measure(encoder: nn.Module, images: Tensor, sizes: Sizes) -> dict[str, Any]:
    """Each setting's cost over the best plain pass, by the wall clock and in processor time.

    The plain pass is in float32, also for bfloat16 settings. If the processor lacks bfloat16, only
    :data:`EMULATED` is timed, on fewer pairs and in fewer rounds.
    """
    fast = fast_in_bf16(torch.device("cpu"))
    settled = {name: one for name, one in SETTINGS.items() if fast or not one.bf16}
    found, layout, pair = _calls(encoder, images[: sizes.batch], settled, sizes.rounds)
    if not fast:
        slow = {EMULATED: SETTINGS[EMULATED]}
        found |= _calls(encoder, images[: sizes.slow_batch], slow, sizes.slow_rounds)[0]
    algebra: dict[tuple[int, bool, int], Times] = {}  # the same in every data type
    for name, one in found.items():
        for number in TOTALS:
            key = SETTINGS[name].rank, SETTINGS[name].joint, number
            if key not in algebra:
                algebra[key] = _algebra(encoder, *key)
            for clock, parts in one.items():
                plain = number * pair[clock]
                added = (parts["fixed"] + algebra[key][clock]) / plain
                parts["curvature"][str(number)] = round(algebra[key][clock] / plain, 4)
                parts["total"][str(number)] = round(parts["pair"] + added, 4)
    return {
        "settings": found,
        "direct": _direct(encoder, images[: sizes.direct], sizes.batch, layout["wall"]),
        "bfloat16": "native" if fast else "emulated",
        "layout": layout,
        "seconds a pair": {clock: round(value, 5) for clock, value in pair.items()},
        "sizes": sizes._asdict(),
    }


def _calls(
    encoder: nn.Module, images: Tensor, settings: dict[str, Setting], rounds: int
) -> tuple[dict[str, Any], dict[str, str], Times]:
    """The costs of each setting, without totals; the layout of the unit and its time per pair.

    A call's fixed cost, in seconds, and its cost per pair over the plain pass are medians of the
    rounds.
    """
    n = len(images)
    calls = [
        partial(_score, encoder, some, one, n)
        for one in settings.values()
        for some in (images[:FEW], images)
    ]
    plain = plain_passes(encoder, pairs_of(images, n))
    seconds = timed(plain, calls, rounds, WARM_UP)
    found: dict[str, Any] = {name: {} for name in settings}
    for clock in CLOCKS:
        few, all_of_them = seconds.jobs[clock][:, 0::2], seconds.jobs[clock][:, 1::2]
        pair = (all_of_them - few) / (n - FEW)
        once = np.median(few - FEW * pair, 0)
        ratio = pair / (seconds.unit(clock)[:, None] / n)
        for column, name in enumerate(settings):
            found[name][clock] = {
                "fixed": round(float(once[column]), 4),
                "pair": round(float(np.median(ratio[:, column])), 4),
                "quartiles": quartiles(ratio[:, column].tolist()),
                "curvature": {},
                "total": {},
                "rounds": rounds,
            }
    layout = {clock: seconds.layout(clock) for clock in CLOCKS}
    return found, layout, {clock: float(np.median(seconds.unit(clock))) / n for clock in CLOCKS}


def _score(encoder: nn.Module, images: Tensor, setting: Setting, batch: int) -> None:
    """A whole call as in practice: contiguous images, noise, checks, curvature, scores."""
    InfluenceScorer(
        encoder, curvature=LoGra(setting.rank, setting.joint), batch_size=batch, progress=False,
        dtype=torch.bfloat16 if setting.bf16 else None,
    ).score(images)  # fmt: skip


def _direct(encoder: nn.Module, images: Tensor, batch: int, layout: str) -> dict[str, Any]:
    """One whole call at :data:`MAIN`, between plain passes over the two halves."""
    before, after = (plain_passes(encoder, pairs_of(x, batch))[layout] for x in images.chunk(2))
    call = partial(_score, encoder, images, SETTINGS[MAIN], batch)
    one, all_of_it, other = [seconds_of(job) for job in (before, call, after)]
    ratio = {clock: round(all_of_it[clock] / (one[clock] + other[clock]), 4) for clock in CLOCKS}
    return {"images": len(images), **ratio}


@dataclass
class _Repeated:
    """A chunk of gradients repeated ``times`` times, so that a curvature receives ``n`` of them.

    ``accumulating`` adds up, by each clock, the time that the curvature spends on a chunk before it
    requests the next one.
    """

    chunk: Tensor
    n: int
    layers: list[Layer]
    device: torch.device
    accumulating: Times = field(default_factory=lambda: dict.fromkeys(CLOCKS, 0.0))

    def __iter__(self) -> Iterator[Tensor]:
        begin = {clock: read() for clock, read in CLOCKS.items()}
        yield self.chunk
        for clock, read in CLOCKS.items():
            self.accumulating[clock] += read() - begin[clock]


def _algebra(encoder: nn.Module, rank: int, joint: bool, images: int) -> Times:
    """Seconds of covariances, solve and forms for so many images, by each clock.

    They are timed on at most :data:`CHUNK` gradients, the number that a curvature receives at once.
    Work done per chunk is then multiplied; the solve is not.
    """
    curvature = LoGra(rank, joint)
    layers = [
        Layer(name, [module], module.weight.shape[0], module.weight[0].numel())
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    curvature.project(layers)
    generator = torch.Generator().manual_seed(0)
    size = min(CHUNK, images), sum(layer.size for layer in layers)
    chunk = torch.randn(size, generator=generator)
    gradients = _Repeated(chunk, images, layers, chunk.device)
    fit: list[Any] = []
    # A projected curvature needs no Hessian of a data set.
    whole = seconds_of(lambda: fit.append(curvature.fit(cast(Gradients, gradients))))
    forms = seconds_of(lambda: fit[0](chunk))
    chunks = images / len(chunk)
    return {
        clock: whole[clock] + (chunks - 1) * gradients.accumulating[clock] + chunks * forms[clock]
        for clock in CLOCKS
    }


def reproduce(task: Task) -> str:
    """Measure and record the cost with an untrained ResNet-18, because values do not matter."""
    sizes = SIZES.get(task.profile, LARGE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = cifar_resnet18(sizes.width)
    data = data_for(task.profile, "test")
    begin = time.perf_counter()
    record = measure(encoder, normalise(data.tensor()[: sizes.direct]), sizes)
    record["provenance"] = results.provenance(
        task.command, task.profile, 0, f"{data.name} test, the first {sizes.direct:,} images",
        data.digest, results.device_name("cpu"), time.perf_counter() - begin,
    )  # fmt: skip
    results.save_json((task.root or results.results_root()) / task.profile / "cost.json", record)
    return (
        f"a call on {TOTALS[0]:,} images at {MAIN} takes {total(record, MAIN, TOTALS[0]):.2f} of "
        "the best plain forward and backward pass"
    )
