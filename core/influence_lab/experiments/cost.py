"""What scoring costs: its time over that of an ordinary training pass on the same pairs."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

from influence_ssl import GaussianNoise, InfluenceScorer
from influence_ssl.errors import InfluenceValueError

from .. import results
from ..encoders import normalise
from ..tasks import data_for
from . import Task

ROUNDS = 7
IMAGES, BATCH_SIZE = 1024, 256
WARM_UP = 1


def plain_pass(encoder: nn.Module, pairs: list[Tensor]) -> None:
    """Forward and backward with all weight gradients over ready-made pairs, batch by batch."""
    encoder.eval()
    for pair in pairs:
        encoder.zero_grad(set_to_none=True)
        z, z_hat = encoder(pair).chunk(2)
        (1 - torch.cosine_similarity(z, z_hat)).sum().backward()


def measure(
    encoder: nn.Module, images: Tensor, batch_size: int = 256, rounds: int = ROUNDS
) -> list[float]:
    """Ratios, one per round: seconds of fitting and scoring ``images`` over those of a plain pass.

    The scoring pass is the whole of ``InfluenceScorer.score`` (noise, projected gradients,
    covariance, solve) with the library's defaults. The plain pass gets its pairs ready-made. The
    two are timed in turn, first one and then the other going first.
    """
    indices = torch.arange(len(images)).split(batch_size)
    noise = GaussianNoise()
    pairs = [torch.cat([images[i], noise(images[i], i, 0, 0)]) for i in indices]
    scorer = InfluenceScorer(encoder, batch_size=batch_size, progress=False)

    def seconds(scoring: bool) -> float:
        begin = time.perf_counter()
        if scoring:
            scorer.score(images)
        else:
            plain_pass(encoder, pairs)
        return time.perf_counter() - begin

    ratios = []
    for i in range(WARM_UP + rounds):
        if i % 2:
            plain, scoring = seconds(False), seconds(True)
        else:
            scoring, plain = seconds(True), seconds(False)
        ratios.append(scoring / plain)
    encoder.zero_grad(set_to_none=True)
    return ratios[WARM_UP:]


def reproduce(task: Task) -> str:
    """Measure with the recorded SimCLR encoder on the first test images, and record it."""
    profile, seed = task.profile, task.seed
    encoder = results.load_encoder(profile, "simclr", seed, task.root)
    if encoder is None:
        raise InfluenceValueError(
            f"{profile}/simclr-{seed}: no recorded encoder; first run influence-lab pretrain "
            f"simclr --profile {profile} --seed {seed}"
        )
    data = data_for(profile, "test")
    images = normalise(data.tensor()[:IMAGES])
    begin = time.perf_counter()
    ratios = measure(encoder, images, BATCH_SIZE)
    record = {
        "ratios": [round(ratio, 4) for ratio in ratios],
        "median": round(statistics.median(ratios), 4),
        "images": len(images),
        "batch size": BATCH_SIZE,
        "dtype": "float32",
        "provenance": results.provenance(
            task.command,
            profile,
            seed,
            f"{data.name} test, the first {len(images):,} images",
            data.digest,
            results.device_name("cpu"),
            time.perf_counter() - begin,
        ),
    }
    results.save_json((task.root or results.results_root()) / profile / "cost.json", record)
    return f"{record['median']:.2f} of a plain forward and backward pass"
