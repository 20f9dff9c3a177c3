"""Part b, continued: larger encoders on images of 224 pixels, where timm or torchvision are."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from influence_lab.gpu.clocks import fits, seconds
from influence_lab.gpu.precision import PRECISIONS, computing
from influence_lab.gpu.speed import DIGITS, Speed
from influence_lab.gpu.steps import Step, short
from influence_lab.gpu.workplace import Workplace

_BATCHES = (16, 64, 128)


def resnet50(side: int) -> nn.Module:
    """torchvision's ResNet-50 without its classifier."""
    from torchvision import models

    encoder = models.resnet50(weights=None)
    encoder.fc = nn.Identity()
    return encoder


def vit_small(side: int) -> nn.Module:
    """timm's ViT-S with patches of 16 pixels, without its classifier."""
    import timm

    return timm.create_model("vit_small_patch16_224", img_size=side, num_classes=0)


ENCODERS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "ResNet-50": ("torchvision", resnet50),
    "ViT-S": ("timm", vit_small),
}


def steps(work: Workplace) -> list[Step]:
    """One step for each encoder."""
    return [Step(name, 60 * work.sizes.least, short(run, work, name)) for name in ENCODERS]


def run(work: Workplace, name: str) -> dict[str, Any]:
    """Images a second of whole calls and the ratio to the plain pass, by precision and batch size.

    The images are random numbers: only the time is of interest.
    """
    package, make = ENCODERS[name]
    if importlib.util.find_spec(package) is None:
        return {"left out": f"{package} is not installed here"}
    sizes, speed = work.sizes, Speed(work)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = make(sizes.side).to(work.device).eval()
        images = torch.randn(sizes.large, 3, sizes.side, sizes.side)
    found: dict[str, Any] = {"images": len(images), "side": sizes.side}
    for precision in ("bfloat16", "TF32"):
        rows = found[precision] = {}
        with computing(PRECISIONS[precision]):
            for batch in sorted({min(batch, len(images)) for batch in _BATCHES}):
                plain = [
                    took
                    for took in speed.plain(encoder, images, precision, batch).values()
                    if took is not None
                ]
                job = partial(speed.scorer(encoder, sizes.ranks[0], precision, batch).score, images)
                took = fits(partial(seconds, job, work.device, 1))
                if took is None or not plain:
                    rows[str(batch)] = None
                    continue
                rows[str(batch)] = {
                    "images a second": round(len(images) / took["wall"], 1),
                    "ratio": round(took["wall"] / len(images) / min(plain), DIGITS),
                    "cpu": round(took["cpu"], DIGITS),
                }
    return found
