"""What scoring costs: its time over that of an ordinary training pass on the same pairs.

The scoring pass is taken apart, since its parts grow differently: ``capture`` (noise, forward and
backward pass, projections) and ``curvature`` (covariances and forms) with the images, the ``solve``
not at all. It counts as a share of :data:`SHARED_BY` images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from influence_ssl import InfluenceScorer, LoGra
from influence_ssl.curvature import Gradients
from influence_ssl.gradients import Layer

from .. import results
from ..benchmark.timing import CLOCKS, pairs_of
from ..encoders import cifar_resnet18, normalise
from ..tasks import data_for
from . import Task

SHARED_BY = 50_000
CHUNK = 1024
WARM_UP = 1
PARTS = ("capture", "curvature", "solve")


class Setting(NamedTuple):
    """A scorer's setting, and the cost that it must not exceed."""

    rank: int
    joint: bool
    bf16: bool
    bound: float


SETTINGS = {
    "rank 16": Setting(16, False, False, 0.70),
    "rank 16, joint": Setting(16, True, False, 0.72),
    "rank 32": Setting(32, False, False, 0.80),
    "rank 64": Setting(64, False, False, 1.20),
    "rank 16, bfloat16": Setting(16, False, True, 0.35),
    "rank 16, joint, bfloat16": Setting(16, True, True, 0.36),
    "rank 32, bfloat16": Setting(32, False, True, 0.40),
    "rank 64, bfloat16": Setting(64, False, True, 0.60),
}


class Sizes(NamedTuple):
    """The encoder's width, images in a batch, and rounds."""

    width: int
    images: int
    rounds: int


SIZES = {"tiny": Sizes(4, 8, 2)}
LARGE = Sizes(64, 64, 10)

Times = dict[str, float]


def plain_pass(encoder: nn.Module, pairs: list[Tensor], train: bool = False) -> None:
    """Forward and backward with all weight gradients over ready-made pairs, batch by batch."""
    encoder.train(train)
    for pair in pairs:
        encoder.zero_grad(set_to_none=True)
        z, z_hat = encoder(pair).chunk(2)
        (1 - torch.cosine_similarity(z, z_hat)).sum().backward()


@dataclass
class _Repeated:
    """Gradients that come ``times`` over, as a curvature sees them."""

    chunk: Tensor
    times: int
    layers: list[Layer]
    device: torch.device
    n: int = SHARED_BY

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self.chunk] * self.times)


def measure(encoder: nn.Module, images: Tensor, rounds: int) -> dict[str, Any]:
    """Each setting's cost over a plain pass, by the wall clock and in processor time.

    The passes of all settings and the plain one, in eval mode and float32 with ready-made pairs,
    are timed in turn; a capture's ratio is that within its round. Curvature and solve are timed
    once, on :data:`CHUNK` pairs.
    """
    pairs = pairs_of(images, len(images))
    passes: dict[str, list[Times]] = {name: [] for name in ("plain", "train", *SETTINGS)}
    algebra: dict[str, tuple[Times, Times]] = {}
    for _ in range(WARM_UP + rounds):
        passes["plain"].append(_times(lambda: plain_pass(encoder, pairs)))
        passes["train"].append(_times(lambda: plain_pass(encoder, pairs, train=True)))
        for name, setting in SETTINGS.items():
            curvature = LoGra(setting.rank, setting.joint)
            scorer = InfluenceScorer(
                encoder, curvature=curvature, batch_size=len(images), progress=False,
                dtype=torch.bfloat16 if setting.bf16 else None,
            )  # fmt: skip
            with scorer._gradients(images, None, "time") as gradients:
                passes[name].append(_times(partial(list, gradients)))
                if name not in algebra:
                    chunk = torch.cat(list(gradients)).repeat(CHUNK // len(images), 1)
                    algebra[name] = _algebra(curvature, chunk, gradients.layers)
    encoder.zero_grad(set_to_none=True)
    plain = [{c: one[c] / len(images) for c in CLOCKS} for one in passes.pop("plain")[WARM_UP:]]
    unit = {clock: statistics.median(one[clock] for one in plain) for clock in CLOCKS}

    def ratios(name: str, clock: str) -> list[float]:
        each = zip(passes[name][WARM_UP:], plain, strict=True)
        return [one[clock] / len(images) / other[clock] for one, other in each]

    found: dict[str, Any] = {}
    for name in SETTINGS:
        found[name] = {}
        for clock in CLOCKS:
            captures, (per_pair, once) = ratios(name, clock), algebra[name]
            low, middle, high = statistics.quantiles(captures, n=4)
            parts = (
                middle, per_pair[clock] / unit[clock], once[clock] / SHARED_BY / unit[clock]
            )  # fmt: skip
            found[name][clock] = {
                **{part: round(value, 4) for part, value in zip(PARTS, parts, strict=True)},
                "quartiles": [round(low, 4), round(high, 4)],
                "total": round(sum(parts), 4),
            }
    return {
        "settings": found,
        "plain, train mode": {
            clock: round(statistics.median(ratios("train", clock)), 4) for clock in CLOCKS
        },
        "seconds a pair": {clock: round(value, 5) for clock, value in unit.items()},
        "batch": len(images),
        "rounds": rounds,
    }


def _algebra(curvature: LoGra, chunk: Tensor, layers: list[Layer]) -> tuple[Times, Times]:
    """Seconds a pair of covariances and forms, and seconds of the solve."""
    # What of a data set a projected curvature asks for: no Hessian.
    shorter, longer = (
        cast(Gradients, _Repeated(chunk, times, layers, chunk.device)) for times in (1, 2)
    )
    one, two = (_times(partial(curvature.fit, gradients)) for gradients in (shorter, longer))
    forms = _times(partial(curvature.fit(shorter), chunk))
    covariance = {clock: max(0.0, two[clock] - one[clock]) for clock in CLOCKS}
    per_pair = {clock: (covariance[clock] + forms[clock]) / len(chunk) for clock in CLOCKS}
    return per_pair, {clock: max(0.0, one[clock] - covariance[clock]) for clock in CLOCKS}


def _times(work: Callable[[], object]) -> Times:
    begin = {clock: read() for clock, read in CLOCKS.items()}
    work()
    return {clock: read() - begin[clock] for clock, read in CLOCKS.items()}


def reproduce(task: Task) -> str:
    """Measure with an untrained ResNet-18, whose values do not matter, and record it."""
    sizes = SIZES.get(task.profile, LARGE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = cifar_resnet18(sizes.width)
    data = data_for(task.profile, "test")
    begin = time.perf_counter()
    record = measure(encoder, normalise(data.tensor()[: sizes.images]), sizes.rounds)
    record["width"] = sizes.width
    record["provenance"] = results.provenance(
        task.command, task.profile, 0, f"{data.name} test, the first {sizes.images} images",
        data.digest, results.device_name("cpu"), time.perf_counter() - begin,
    )  # fmt: skip
    results.save_json((task.root or results.results_root()) / task.profile / "cost.json", record)
    total = record["settings"]["rank 16"]["wall"]["total"]
    return f"at rank 16 {total:.2f} of a plain forward and backward pass"
