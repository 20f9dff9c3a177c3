"""The training loop: deterministic by seed, resumable, on one or several processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from influence_lab.datasets.base import Images, cache_root
from influence_lab.pretrain import checkpoint, cost
from influence_lab.pretrain.augment import augment
from influence_lab.pretrain.checkpoint import Place, Run
from influence_lab.pretrain.methods import Method, build
from influence_lab.pretrain.optim import LARS, learning_rate, momentum_of_target
from influence_lab.pretrain.probes import extract, knn_accuracy
from influence_lab.pretrain.processes import (
    average_gradients,
    count,
    part,
    rank,
    share_batch_norm,
    total,
)
from influence_lab.pretrain.resnets import standardise
from influence_lab.pretrain.settings import Settings
from influence_ssl.errors import InfluenceValueError

# The kNN curve uses a part of the data; the last point of a run is measured on all of it.
CURVE_BANK, CURVE_QUERIES = 10_000, 2_000

SAVE_SECONDS = 180.0


def run_folder(method: str, profile: str, seed: int, root: Path | None = None) -> Path:
    """The folder of a run: ``runs/PROFILE/METHOD-SEED`` in the user's cache, or below ``root``."""
    root = cache_root() / "runs" if root is None else root
    return root / profile / f"{method}-{seed}"


def pretrain(
    settings: Settings,
    seed: int,
    train: Images,
    test: Images | None,
    folder: Path,
    device: str | torch.device = "cpu",
    stop_after: int | None = None,
    progress: bool = True,
    save_seconds: float = SAVE_SECONDS,
    after_epoch: Callable[[Run], bool] | None = None,
    compiled: str | None = None,
) -> Run:
    """Train to the end of ``settings.epochs``, from ``folder``'s checkpoint if there is one.

    After each epoch, and every ``save_seconds`` within one, ``checkpoint.pt`` (weights, optimiser,
    curves, place) and ``curves.json`` are replaced. Epoch e draws its order and augmentations from
    a generator seeded by (seed, e), whose state is also saved. An interrupted run therefore ends
    with the weights of an uninterrupted one, bit for bit on a CPU with the same number of threads.
    Several processes (:mod:`.processes`) share each batch; the first writes. Time and memory are
    predicted beforehand and compared afterwards. The call returns after ``stop_after`` epochs, if
    given, and once ``after_epoch``, called with the run when an epoch is saved, returns ``True``.
    ``compiled``: a backend of ``torch.compile`` for the trained networks, which changes their
    numbers by rounding. Without ``test``, no accuracy is measured during training, which saves a
    pass over both data sets per epoch.
    """
    device = torch.device(device)
    _check_sizes(settings, train)
    method = build(settings, len(train.classes), seed).to(device)
    method = method.to(memory_format=memory_format(settings))
    share_batch_norm(method, device)
    if compiled is not None:
        method.compile_networks(compiled)
    optimiser = _optimiser(method, settings)
    run = Run(folder, settings, seed, method, [])
    digest = train.digest  # of all pixels: asked once
    place = checkpoint.resume(run, optimiser, device, digest)
    images, labels = train.tensor().to(device), torch.from_numpy(train.labels.copy()).to(device)
    first, writes = len(run.epochs), rank() == 0
    speaks = progress and writes
    last = settings.epochs if stop_after is None else min(settings.epochs, first + stop_after)
    bf16 = settings.bf16 and fast_in_bf16(device)
    steps = len(train) // settings.batch
    bar = tqdm(
        total=settings.epochs * steps, initial=first * steps + place.step, mininterval=20,
        desc=f"{settings.method} seed {seed}", unit="step", file=sys.stderr, maxinterval=60,
        disable=not speaks,
    )  # fmt: skip
    if speaks and first < last:
        left = replace(settings, epochs=last - first)
        bar.write(cost.announce(left, train, cost.here(device, bf16)), sys.stderr)

    def save(place: Place) -> None:
        if writes:
            checkpoint.save(run, optimiser, digest, place)

    cost.forget_peak(device)
    for epoch in range(first, last):
        record = _epoch(run, optimiser, epoch, images, labels, bf16, place, bar, save, save_seconds)
        if writes and test is not None:
            record["knn"] = _curve_point(run, train, test, bf16)
        record |= {"bf16": bf16, "bytes": cost.peak_bytes(device)}
        run.epochs.append(record)
        place = Place()
        save(place)
        bar.set_postfix(epoch=epoch + 1, loss=f"{record['loss']:.4f}", knn=record.get("knn"))
        bar.refresh()
        if after_epoch is not None and after_epoch(run):
            break
    bar.close()
    if speaks and first < len(run.epochs):
        print(cost.compare(run.epochs[first:]), file=sys.stderr)
    return run


def _check_sizes(settings: Settings, train: Images) -> None:
    if len(train) < settings.batch:
        raise InfluenceValueError(
            f"{train.name}: {len(train)} training images, fewer than one batch of {settings.batch}"
        )
    if settings.batch % count():
        raise InfluenceValueError(
            f"{count()} processes cannot share a batch of {settings.batch} equally; "
            "start a number that divides it"
        )


def memory_format(settings: Settings) -> torch.memory_format:
    """Channels last, which is faster, except where it is not safe."""
    # The weight gradient of a strided 1 x 1 convolution with fewer input channels than a vector
    # register holds overwrites foreign memory (oneDNN issue 6035).
    return torch.channels_last if settings.width >= 16 else torch.contiguous_format


def fast_in_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively; emulation on a CPU is ten times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(known for name, known in torch.cpu.get_capabilities().items() if "bf16" in name)


def _optimiser(method: Method, settings: Settings) -> torch.optim.Optimizer:
    parameters = [p for p in method.parameters() if p.requires_grad]
    if settings.optimiser == "lars":
        return LARS(
            parameters, settings.lr, settings.momentum, settings.weight_decay, settings.eta,
            settings.clip,
        )  # fmt: skip
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
    bf16: bool,
    place: Place,
    bar: tqdm,
    save: Callable[[Place], None],
    save_seconds: float,
) -> dict[str, float]:
    """Train from ``place`` to the end of the epoch; its mean loss and its seconds."""
    settings, method = run.settings, run.method
    device = images.device
    generator = torch.Generator(device).manual_seed((run.seed * 100_003 + epoch) * 2 + 1)
    order = torch.randperm(len(images), generator=generator, device=device)
    if place.generator is not None:
        generator.set_state(place.generator.cpu())
    per_epoch = len(images) // settings.batch
    steps, warmup = settings.epochs * per_epoch, round(settings.warmup * per_epoch)
    scale = settings.batch / 256
    method.train()
    losses = torch.tensor(place.loss, dtype=torch.float64, device=device)
    begin = saved = time.perf_counter()
    for i in range(place.step, per_epoch):
        step = epoch * per_epoch + i
        rate = learning_rate(step, steps, warmup, settings.lr * scale, settings.start_lr)
        for group in optimiser.param_groups:
            group["lr"] = rate
        index = order[i * settings.batch : (i + 1) * settings.batch]
        pixels = images[index].float() / 255
        views = [
            part(standardise(augment(pixels, settings.augmentation, generator) * 255)).contiguous(
                memory_format=memory_format(settings)
            )
            for _ in range(method.views)
        ]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = method.loss(views, part(labels[index]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(method.parameters())
        optimiser.step()
        method.after_step(momentum_of_target(step, steps, settings.tau))
        losses += total(loss.detach().double()) / count()
        bar.update()
        now = time.perf_counter()
        if now - saved >= save_seconds and i + 1 < per_epoch:
            saved = now
            seconds = place.seconds + now - begin
            state = generator.get_state()
            save(Place(i + 1, _finite(run, losses), seconds, state, device.type))
    mean = _finite(run, losses) / per_epoch  # waits for the device, whose last step counts as well
    return {"loss": mean, "seconds": place.seconds + time.perf_counter() - begin}


def _finite(run: Run, losses: Tensor) -> float:
    if not torch.isfinite(losses):
        raise checkpoint.diverged(run)
    return float(losses)


def _curve_point(run: Run, train: Images, test: Images, bf16: bool) -> float:
    bank, queries = slice(CURVE_BANK), slice(CURVE_QUERIES)
    # A fixed random part, because a folder's images are sorted by class.
    order = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(train), generator=order)[bank].numpy()
    asked = torch.randperm(len(test), generator=order)[queries].numpy()
    some, others = train.subset(chosen), test.subset(asked)
    bank_features, query_features = (
        extract(run.encoder, part.tensor(), bf16=bf16) for part in (some, others)
    )
    labels, truth = (torch.from_numpy(part.labels.copy()) for part in (some, others))
    return knn_accuracy(bank_features, labels, query_features, truth)
