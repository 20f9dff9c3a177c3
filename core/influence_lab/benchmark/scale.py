"""Predicted memory, disk space and time of a scoring run, and a very large run.

Memory is counted from tensors: those that autograd and the scorer keep for a batch, the projected
gradients, and the matrices of the curvature. glibc may retain memory of freed tensors, in some runs
a third more; with ``MALLOC_MMAP_THRESHOLD_=131072`` it does not.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from influence_lab.pretrain.cost import Device
from influence_ssl import GaussianNoise, InfluenceScorer, LoGra, Scores
from influence_ssl.curvature import CHUNK, CHUNK_BYTES, Curvature, Gradients, Layer
from influence_ssl.errors import InfluenceTypeError

PER_IMAGE = 128  # bytes of an image's index, score, loss, norm, and their copies, per draw


@dataclass(frozen=True)
class Memory:
    """Bytes part by part, and their peak sum."""

    weights: float
    batch: float
    waiting: float
    kept: float
    covariances: float
    solve: float
    images: float

    @property
    def peak(self) -> float:
        """The peak memory; batches are freed before the curvature is solved."""
        always = self.weights + self.kept + self.covariances + self.images
        return always + max(self.batch + self.waiting, self.solve)


def curvature_bytes(sizes: Sequence[int], joint: bool) -> tuple[float, float]:
    """For blocks of these dimensions: all covariances, and the work space to invert the largest.

    In float64, of at least as many gradients as dimensions. Factor, identity, inverse and the work
    space of LAPACK are four matrices.
    """
    blocks = [sum(sizes)] if joint else list(sizes)
    return sum(8.0 * k * k for k in blocks), 32.0 * max(blocks) ** 2


class _Counting:
    """A counter instead of a curvature: what a pass over one batch keeps, with another's layers."""

    def __init__(self, inner: Curvature) -> None:
        self.inner = inner
        self.saved: dict[int, int] = {}  # bytes by address, of what autograd keeps
        self.projected = 0  # bytes of the layers' projected inputs
        self.layers: list[Layer] = []

    def project(self, layers: list[Layer]) -> None:
        self.inner.project(layers)

    def parameters(self) -> Iterator[Tensor]:
        """The parameters of the modules that ran, possibly in a copy of the encoder."""
        return (p for layer in self.layers for m in layer.modules for p in m.parameters())

    def fit(self, gradients: Gradients) -> Callable[[Tensor], Tensor]:
        self.layers = gradients.layers
        with ExitStack() as hooks:
            for layer in self.layers:
                for module in layer.modules:
                    count = partial(self._count, layer)
                    hooks.enter_context(module.register_forward_hook(count))
            with saved_tensors_hooks(self._pack, lambda x: x):
                (g,) = gradients
        self.width = g.shape[1] * g.element_size()
        return lambda g: g.sum(1)

    def _pack(self, x: Tensor) -> Tensor:
        self.saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    def _count(self, layer: Layer, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """``layer.shape[1]`` numbers of each position and group, or all inputs as they are."""
        positions = output.numel() // module.weight.shape[0] * getattr(module, "groups", 1)
        numbers = inputs[0].numel() if layer.own_forward else positions * layer.shape[1]
        exact = output.dtype == torch.bfloat16 or layer.own_forward
        dtype = output.dtype if exact else torch.promote_types(output.dtype, torch.float32)
        self.projected += numbers * dtype.itemsize


def memory(
    scorer: InfluenceScorer, sample: Tensor, n: int, *, keep: bool, processes: int = 1
) -> Memory:
    """Bytes that scoring ``n`` images like the few of ``sample`` adds to a process.

    ``keep``: whether gradients are kept for a second pass (``score`` without ``fit``, if they fit
    into a third of the free memory and no ``store`` holds them).
    """
    if not isinstance(scorer.curvature, LoGra):
        raise InfluenceTypeError("memory: count is for LoGra; give a scorer with that curvature.")
    counting = _Counting(scorer.curvature)
    InfluenceScorer(
        scorer.encoder, scorer.objective, counting, device=scorer.device, dtype=scorer.dtype,
        layers=scorer.layers, batch_size=len(sample), progress=False,
    ).fit(sample)  # fmt: skip
    parameters = [*scorer.encoder.parameters(), *counting.parameters()]
    pointers = {p.untyped_storage().data_ptr() for p in parameters}
    activations = [size for pointer, size in counting.saved.items() if pointer not in pointers]
    # In the backward pass three maps of the largest kind are in use besides what was saved.
    batch = (sum(activations) + 3 * max(activations) + counting.projected) / len(sample)
    sizes = [layer.size for layer in counting.layers]
    width = counting.width
    weights = sum(
        p.numel() * (p if scorer.dtype is None else scorer.dtype).itemsize
        for p in scorer.encoder.parameters()
    )
    rows = min(CHUNK, int(CHUNK_BYTES // width), n * scorer.draws)
    covariances, solve = curvature_bytes(sizes, scorer.curvature.joint)
    return Memory(
        weights=weights,
        batch=batch * min(scorer.images_at_once(sample[0].numel()), n),
        waiting=(1 if keep else 2) * rows * width,  # what is kept waits in its place
        kept=n * scorer.draws * width / processes if keep else 0,
        covariances=covariances,
        solve=solve,
        images=PER_IMAGE * n * scorer.draws,
    )


class Stream(torch.utils.data.Dataset[Tensor]):
    """``n`` images of noise and stripes, generated on access; they take no space."""

    def __init__(self, n: int, side: int = 8) -> None:
        self.n, self.side = n, side
        # Every processor rounds a division alike, but not a sine; the digest must not depend on it.
        self.stripes = torch.arange(side) * torch.arange(1, 17)[:, None] % 17 / 17

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Tensor:
        """Image i (1, side, side), a function of i alone."""
        return self.__getitems__([i])[0]

    def __getitems__(self, rows: list[int]) -> Tensor:
        """Several images at once (B, 1, side, side)."""
        i = torch.tensor(rows)
        across, down = self.stripes[i % 16], self.stripes[i // 16 % 16]
        return (across[:, None, :] * down[:, :, None] + (i % 1009 / 1009)[:, None, None])[:, None]


def tiny_encoder(seed: int = 0) -> nn.Module:
    """Two convolutions and a linear layer for the images of :class:`Stream`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(4, 4),
        )  # fmt: skip


def stream(n: int, batch_size: int = 1000) -> Scores:
    """Scores of ``n`` streamed images in two passes, without keeping anything."""
    images = Stream(n)
    scorer = InfluenceScorer(tiny_encoder(), batch_size=batch_size, progress=False)
    return scorer.fit(images).score(images)


def forward_flops(encoder: nn.Module, image: Tensor) -> int:
    """Operations of one image's forward pass, a multiplication and an addition being two."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(image[None])
    return counter.get_total_flops()


def on_paper(
    encoder: nn.Module,
    image: Tensor,
    n: int,
    device: Device,
    *,
    rank: int = 16,
    ratio: float = 0.7,
    draws: int = 1,
    joint: bool = False,
) -> dict[str, float]:
    """Seconds, bytes of memory a process and bytes on disk for ``n`` images; an estimate.

    ``encoder`` and ``image`` may be on the meta device. ``ratio`` is the measured ratio of a
    scoring pass to a plain forward and backward pass, which takes three forward passes per view.
    Every process holds the curvature and a share of the kept gradients.
    """
    modules = [m for m in encoder.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    shapes = [(m.weight.shape[0], m.weight[0].numel()) for m in modules]
    sizes = [min(rank, o, i) ** 2 for o, i in shapes]
    plain = 3 * 2 * forward_flops(encoder, image)
    gradients = 4.0 * sum(sizes) * n * draws
    return {
        "seconds": ratio * plain * n * draws / (device.flops * device.units),
        "gradients": gradients,
        "gradients a process": gradients / device.processes,
        "curvature": sum(curvature_bytes(sizes, joint)),
        "scores on disk": 32.0 * n,
        "noise": n * draws * seconds_of_noise(image.shape) / device.processes,
    }


def seconds_of_noise(shape: Sequence[int], images: int = 64) -> float:
    """Seconds to draw one image's noise on this machine's CPU."""
    x, noise = torch.zeros(images, *shape), GaussianNoise()
    begin = time.perf_counter()
    noise(x, torch.arange(images), 0, 0)
    return (time.perf_counter() - begin) / images


def peak(work: Callable[[], object]) -> int:
    """The largest growth in bytes of this process's own memory while ``work`` runs (Linux).

    File pages are not counted, because the kernel evicts idle code, whose return during the work
    would count as growth.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return _status("VmHWM") - _status("RssFile") - before


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(text.split(name + ":")[1].split()[0])
