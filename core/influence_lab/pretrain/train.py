"""The training loop: deterministic by seed, a checkpoint each epoch, resumed where it stopped."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from influence_ssl.errors import InfluenceOSError, InfluenceValueError

from ..datasets.base import Images, cache_root
from ..encoders import CifarResNet18, normalise
from ..files import replacing
from ..probes import extract, knn_accuracy
from .augment import augment
from .methods import Method, build
from .optim import LARS, learning_rate, momentum_of_target
from .settings import Settings

# The kNN curve is drawn from a part of the data, the last point of a run is measured on all of it.
CURVE_BANK, CURVE_QUERIES = 10_000, 2_000


@dataclass
class Run:
    """A training in progress or done: what is trained and one record per finished epoch."""

    folder: Path
    settings: Settings
    seed: int
    method: Method
    epochs: list[dict[str, float]]

    @property
    def encoder(self) -> CifarResNet18:
        """What the method trains and the others use."""
        return self.method.encoder

    @property
    def done(self) -> bool:
        """Whether every epoch was trained."""
        return len(self.epochs) == self.settings.epochs


def run_folder(method: str, profile: str, seed: int, root: Path | None = None) -> Path:
    """Where a run stands: ``runs/PROFILE/METHOD-SEED`` in the user's cache, or below ``root``."""
    root = cache_root() / "runs" if root is None else root
    return root / profile / f"{method}-{seed}"


def pretrain(
    settings: Settings,
    seed: int,
    train: Images,
    test: Images,
    folder: Path,
    device: str | torch.device = "cpu",
    stop_after: int | None = None,
    progress: bool = True,
) -> Run:
    """Train to the end of ``settings.epochs``, from ``folder``'s checkpoint if there is one.

    After each epoch ``checkpoint.pt`` (weights, optimiser, curves) and ``curves.json`` are
    replaced. Epoch e draws its order and augmentations from a generator seeded by (seed, e), so a
    run that was stopped between two epochs ends in the weights of one that was not; one stopped
    within an epoch repeats that epoch. On the CPU with the same number of threads the weights are
    the same bit for bit. ``stop_after`` epochs of this call it returns early.
    """
    device = torch.device(device)
    if len(train) < settings.batch:
        raise InfluenceValueError(
            f"{train.name}: {len(train)} training images, fewer than one batch of {settings.batch}"
        )
    method = build(settings, len(train.classes), seed).to(device)
    method = method.to(memory_format=memory_format(settings))
    optimiser = _optimiser(method, settings)
    run = Run(folder, settings, seed, method, [])
    _resume(run, optimiser, device, train.digest)
    images, labels = train.tensor().to(device), torch.from_numpy(train.labels.copy()).to(device)
    first = len(run.epochs)
    last = settings.epochs if stop_after is None else min(settings.epochs, first + stop_after)
    steps = len(train) // settings.batch
    bar = tqdm(
        total=settings.epochs * steps, initial=first * steps, disable=not progress, mininterval=20,
        desc=f"{settings.method} seed {seed}", unit="step", file=sys.stderr, maxinterval=60,
    )  # fmt: skip
    for epoch in range(first, last):
        begin = time.perf_counter()
        loss = _epoch(run, optimiser, epoch, images, labels, bar)
        record = {"loss": loss, "seconds": time.perf_counter() - begin}
        record["knn"] = _curve_point(run, train, test)
        run.epochs.append(record)
        _save(run, optimiser, train.digest)
        bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.4f}", knn=f"{record['knn']:.3f}")
        bar.refresh()
    bar.close()
    return run


def memory_format(settings: Settings) -> torch.memory_format:
    """Channels last, which is faster, except where it is not safe."""
    # The weight gradient of a strided 1 x 1 convolution with fewer input channels than a vector
    # register holds overwrites foreign memory (oneDNN issue 6035).
    return torch.channels_last if settings.width >= 16 else torch.contiguous_format


def fast_in_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16; a CPU that only emulates it is ten times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _optimiser(method: Method, settings: Settings) -> torch.optim.Optimizer:
    parameters = [p for p in method.parameters() if p.requires_grad]
    if settings.optimiser == "lars":
        return LARS(parameters, settings.lr, settings.momentum, settings.weight_decay, settings.eta)
    kernels = [p for p in parameters if p.ndim > 1]
    rest = [p for p in parameters if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": rest, "weight_decay": 0.0}]
    how: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, **how)
    return torch.optim.SGD(groups, **how, momentum=settings.momentum, nesterov=True)


def _epoch(
    run: Run,
    optimiser: torch.optim.Optimizer,
    epoch: int,
    images: Tensor,
    labels: Tensor,
    bar: tqdm,
) -> float:
    settings, method = run.settings, run.method
    device = images.device
    bf16 = settings.bf16 and fast_in_bf16(device)
    generator = torch.Generator(device).manual_seed((run.seed * 100_003 + epoch) * 2 + 1)
    order = torch.randperm(len(images), generator=generator, device=device)
    per_epoch = len(images) // settings.batch
    steps, warmup = settings.epochs * per_epoch, round(settings.warmup * per_epoch)
    scale = settings.batch / 256
    method.train()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(per_epoch):
        step = epoch * per_epoch + i
        rate = learning_rate(step, steps, warmup, settings.lr * scale, settings.start_lr)
        for group in optimiser.param_groups:
            group["lr"] = rate
        index = order[i * settings.batch : (i + 1) * settings.batch]
        pixels = images[index].float() / 255
        views = [
            normalise(augment(pixels, settings.augmentation, generator) * 255).contiguous(
                memory_format=memory_format(settings)
            )
            for _ in range(method.views)
        ]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = method.loss(views, labels[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        method.after_step(momentum_of_target(step, steps, settings.tau))
        total += loss.detach().double().cpu()
        bar.update()
    mean = float(total) / per_epoch
    if not torch.isfinite(total):
        raise InfluenceValueError(
            f"{settings.method}, epoch {epoch + 1}: the loss is {mean}; lower the learning rate "
            f"({settings.lr}); the checkpoint of epoch {epoch} is kept"
        )
    return mean


def _curve_point(run: Run, train: Images, test: Images) -> float:
    bank, queries = slice(CURVE_BANK), slice(CURVE_QUERIES)
    bf16 = run.settings.bf16 and fast_in_bf16(next(run.encoder.parameters()).device)
    # A fixed random part: a folder's images come class by class.
    order = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(train), generator=order)[bank].numpy()
    asked = torch.randperm(len(test), generator=order)[queries].numpy()
    some, others = train.subset(chosen), test.subset(asked)
    bank_features, query_features = (
        extract(run.encoder, part.tensor(), bf16=bf16) for part in (some, others)
    )
    labels, truth = (torch.from_numpy(part.labels.copy()) for part in (some, others))
    return knn_accuracy(bank_features, labels, query_features, truth)


def _save(run: Run, optimiser: torch.optim.Optimizer, digest: str) -> None:
    state = {
        "settings": asdict(run.settings),
        "seed": run.seed,
        "data": digest,
        "method": run.method.state_dict(),
        "optimiser": optimiser.state_dict(),
        "epochs": run.epochs,
    }
    with replacing(run.folder / "checkpoint.pt") as path:
        torch.save(state, path)
    with replacing(run.folder / "curves.json") as path:
        path.write_text(json.dumps(run.epochs, indent=1))


def _resume(run: Run, optimiser: torch.optim.Optimizer, device: torch.device, digest: str) -> None:
    path = run.folder / "checkpoint.pt"
    if not path.exists():
        return
    state = read_checkpoint(path, device)
    expected = {"settings": asdict(run.settings), "seed": run.seed, "data": digest}
    for name, value in expected.items():
        if state[name] != value:
            raise InfluenceValueError(
                f"{path}: made with other {name} than asked for; move the folder away to begin anew"
            )
    run.method.load_state_dict(state["method"])
    optimiser.load_state_dict(state["optimiser"])
    run.epochs.extend(state["epochs"])


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A run's checkpoint, read without executing anything in it."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise InfluenceOSError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        # torch.load raises many kinds of error for a file that is not a checkpoint.
        raise InfluenceValueError(
            f"{path}: not a checkpoint of this trainer ({type(error).__name__}); "
            "move it away to begin anew"
        ) from error
    keys = ("settings", "seed", "data", "method", "optimiser", "epochs")
    missing = [key for key in keys if not isinstance(state, dict) or key not in state]
    if missing:
        raise InfluenceValueError(
            f"{path}: not a checkpoint of this trainer (no {missing[0]!r} in it); "
            "move it away to begin anew"
        )
    return state
