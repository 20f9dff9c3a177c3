"""Predicted cost of a training: floating-point operations, seconds and bytes.

Seconds per step are a device's fixed time per step plus operations over its sustained rate; bytes
are those of weights, optimiser, data and activations. Operations are counted by PyTorch, bytes from
the layers' shapes.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch

from influence_lab.datasets.base import Images
from influence_lab.pretrain.methods import build
from influence_lab.pretrain.processes import count
from influence_lab.pretrain.resnets import STEMS
from influence_lab.pretrain.settings import Settings

PROCESS = 0.75e9  # bytes of Python with torch and its kernels, not counted on a card


@dataclass(frozen=True)
class Device:
    """A kind of device with the rates that a training reaches on it, not the data sheet's.

    ``flops``: operations per second of one unit (a core or a card); ``overhead``: seconds of each
    step that further units do not shorten; ``bf16``: whether activations have 16 bits; ``source``:
    of the two rates. A training has ``units`` cores or cards and ``processes`` that share a batch.
    """

    name: str
    flops: float
    overhead: float
    bf16: bool
    source: str
    card: bool = False
    units: int = 1
    processes: int = 1


DEVICES = {
    "cpu": Device(
        "CPU core in float32", 42e9, 0.03, False,
        "measured: SimCLR, profile cpu, 278 s an epoch on one core",
    ),
    "cpu bf16": Device(
        "CPU core in bfloat16", 81e9, 0.03, True,
        "measured: SimCLR, profile cpu, 144 s an epoch on one core",
    ),
    "cuda": Device(
        "H100 or H200 in bfloat16", 99e12, 0.015, True,
        "assumed: a tenth of the data sheet's dense rate, 15 ms to launch a step's kernels",
        card=True,
    ),
}  # fmt: skip


def here(device: torch.device, bf16: bool) -> Device:
    """The entry of :data:`DEVICES` nearest to ``device``, with the cores or cards in use."""
    n = count()
    if device.type == "cuda":
        return replace(DEVICES["cuda"], units=n, processes=n)
    cores = torch.get_num_threads() * n
    return replace(DEVICES["cpu bf16" if bf16 else "cpu"], units=cores, processes=n)


@cache
def step_flops(settings: Settings, classes: int) -> int:
    """Operations of one step (a multiplication and an addition are two), convolutions and matrices.

    Counted by PyTorch on the device without memory, where nothing is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    side = settings.augmentation.crop
    with torch.device("meta"):
        method = build(settings, classes, 0)
        views = [torch.empty(settings.batch, 3, side, side) for _ in range(method.views)]
        labels = torch.empty(settings.batch, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        method.loss(views, labels).backward()
    return counter.get_total_flops()


def _stages(settings: Settings) -> list[tuple[int, int, int]]:
    """(inputs, outputs, side) of the encoder's four stages."""
    side, inputs, found = settings.augmentation.crop, settings.width, []
    if settings.stem == "large":
        side = (side + 3) // 4
    for stage in range(4):
        side = side if stage == 0 else (side + 1) // 2
        found.append((inputs, settings.width << stage, side))
        inputs = settings.width << stage
    return found


def _stem_side(settings: Settings) -> int:
    """Width of the first convolution's output in pixels."""
    crop, stride = settings.augmentation.crop, STEMS[settings.stem].STEM[1]
    return (crop + stride - 1) // stride


def _stem_weights(settings: Settings) -> int:
    return 3 * STEMS[settings.stem].STEM[0] ** 2 * settings.width


def _heads(settings: Settings, classes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of the head on the encoder, and of BYOL's predictor on that."""
    features, hidden, output = 8 * settings.width, settings.hidden, settings.output
    return {
        "simclr": ((features, hidden, output), ()),
        "byol": ((features, hidden, output), (output, hidden, output)),
        "barlow": ((features, hidden, hidden, output), ()),
        "supervised": ((features, classes), ()),
    }[settings.method]


def _linear(sizes: tuple[int, ...]) -> int:
    return sum(inputs * outputs for inputs, outputs in pairwise(sizes))


def seconds(settings: Settings, images: int, classes: int, device: Device) -> float:
    """Predicted seconds of all epochs on ``images`` images, without the kNN curve."""
    steps = settings.epochs * (images // settings.batch)
    work = step_flops(settings, classes) / (device.flops * device.units)
    return steps * (device.overhead + work)


def peak_memory(
    settings: Settings, images: int, pixels: int, classes: int, device: Device
) -> float:
    """Predicted bytes of one process at the end of a forward pass, when memory peaks.

    ``images`` of ``pixels`` pixels stand on the device as bytes, and once more as an array where
    the device is the CPU. Weights count three times: themselves, gradient and momentum (AdamW has
    two); in mixed precision a copy in 16 bits is added. Activations are what the backward pass
    needs: the input of each normalisation and the output of each ReLU, and three maps of the first
    stage that BYOL's target network has in use at a time. SimCLR's and Barlow Twins' losses need
    three square matrices.
    """
    views = settings.batch // device.processes * (1 if settings.method == "supervised" else 2)
    encoder, head, predictor = _weights(settings, classes)
    learnt = encoder + head + predictor
    target = encoder + head if settings.method == "byol" else 0
    states = 4 if settings.optimiser == "adamw" else 3
    weights = 4 * (states * learnt + target) + (2 * (learnt + target) if device.bf16 else 0)
    size = 2 if device.bf16 else 4
    stages = [outputs * side**2 for _, outputs, side in _stages(settings)]
    maps = 2 * settings.width * _stem_side(settings) ** 2 + 8 * stages[0] + 9 * sum(stages[1:])
    if settings.method == "byol":
        maps += 3 * stages[0]
    hidden = sum(2 * n for sizes in _heads(settings, classes) for n in sizes[1:-1])
    activations = views * size * (maps + hidden)
    copies = {"supervised": 1, "byol": 3}.get(settings.method, 2)
    crops = copies * views * 4 * 3 * settings.augmentation.crop**2
    matrices = {"simclr": views**2, "barlow": settings.output**2}.get(settings.method, 0)
    data = 3 * images * pixels
    tensors = data + weights + activations + crops + 3 * 4 * matrices
    return tensors if device.card else tensors + data + PROCESS


def _weights(settings: Settings, classes: int) -> tuple[int, int, int]:
    """Numbers of weights of encoder, head and predictor, normalisation and biases left out."""
    encoder = _stem_weights(settings)
    for stage, (inputs, outputs, _) in enumerate(_stages(settings)):
        encoder += outputs * (9 * (inputs + 3 * outputs) + (inputs if stage else 0))
    head, predictor = (_linear(sizes) for sizes in _heads(settings, classes))
    return encoder, head, predictor


def forget_peak(device: torch.device) -> None:
    """Have :func:`peak_bytes` count from here on a card; a process's own peak stays."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The peak memory: tensors on a card since :func:`forget_peak`, or the whole process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def announce(settings: Settings, train: Images, device: Device) -> str:
    """A line with the predicted time and memory of the epochs of ``settings``."""
    predicted = predict(settings, train, device)
    epochs = f"{settings.epochs} epoch{'s' if settings.epochs > 1 else ''}"
    return (
        f"predicted: {duration(predicted['seconds'])} for {epochs}, "
        f"{predicted['bytes'] / 1e9:.1f} GB a process ({device.units} x {device.name}; "
        f"{device.source})"
    )


def predict(settings: Settings, train: Images, device: Device) -> dict[str, float]:
    """Predicted ``seconds`` and ``bytes`` of a training on ``train``."""
    n, pixels, classes = len(train), train.images[0, ..., 0].size, len(train.classes)
    return {
        "seconds": seconds(settings, n, classes, device),
        "bytes": peak_memory(settings, n, pixels, classes, device),
    }


def measured(epochs: list[dict[str, float]]) -> dict[str, float]:
    """The ``seconds`` of the epochs' steps and the peak ``bytes`` in use."""
    peaks = [epoch["bytes"] for epoch in epochs if "bytes" in epoch]
    found = {"seconds": sum(epoch["seconds"] for epoch in epochs)}
    return found | ({"bytes": max(peaks)} if peaks else {})


def compare(epochs: list[dict[str, float]]) -> str:
    """A line with the time and memory of the epochs."""
    found = measured(epochs)
    return f"took: {duration(found['seconds'])}, {found['bytes'] / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """``40 s``, ``7 min``, ``1 h 40 min``, ``46 days``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds > 2 * 86_400:
        return f"{seconds / 86_400:.0f} days"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
