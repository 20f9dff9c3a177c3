"""Part g: other libraries at the influence of images on queries, by the scripts of ``make bench``.

The task, its encoder and its exact reference are those of :mod:`..experiments.pairwise`; speed is
also measured with an untrained ResNet-18 of full width. A script is called in both memory layouts
and, if it takes ``batch``, with several batch sizes: its fastest call counts, and so does that of
the plain pass. Each library has a process of its own, so that no error, leak or lack of memory
reaches another. Two libraries are left out because they refuse convolutions, see ``pairwise``.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from influence_lab.benchmark.timing import LAYOUTS, in_layout, layouts_of, plain_pass
from influence_lab.experiments.pairwise import Pair, agreement, exact, usable, work_of
from influence_lab.experiments.peers import lines, words_of
from influence_lab.experiments.task import Task
from influence_lab.gpu.budget import OutOfTime, ending
from influence_lab.gpu.clocks import fits, seconds
from influence_lab.gpu.packages import PEERS, ROOT, environment
from influence_lab.gpu.speed import DIGITS
from influence_lab.gpu.steps import Step, short
from influence_lab.gpu.workplace import Workplace
from influence_lab.pretrain import cost
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_ssl.files.writing import replacing
from influence_ssl.version import __version__

SCRIPTS = ROOT / "benchmarks" / "pairs"
BATCHES = (64, 256, 1024)
LIMIT = 60.0
"""Seconds that a script may take with one encoder, however many calls that is."""
START = 20.0
"""Seconds after its time within which a process has to end by itself."""


def steps(work: Workplace) -> list[Step]:
    """The reference, and one step for each script."""
    least = work.sizes.least
    return [
        Step("peers, reference", 60 * least, short(reference, work)),
        *(
            Step(f"peers, {name}", (2 * LIMIT + START) * least, short(run, work, name))
            for name in PEERS
        ),
    ]


def reference(work: Workplace) -> dict[str, Any]:
    """The exact influences, which are kept for the other steps."""
    found, λ = exact(work_of(Task("pairs", work.sizes.pairs)), _kept(work))
    return {"queries": len(found), "images": found.shape[1], "damping": λ}


def run(work: Workplace, name: str) -> dict[str, Any]:
    """What a script's process finds, with one encoder if it comes no further.

    Raises if it finds nothing, with the end of what it says.
    """
    if absent := PEERS[name].absent():
        return {"left out": f"{', '.join(absent)}: not installed here"}
    out = work.folder / "peers" / f"{name}.json"
    out.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [
                sys.executable, "-W", "ignore", "-m", "influence_lab.gpu.peers",
                str(SCRIPTS / f"{name}.py"), str(out.resolve()), str(_kept(work).resolve()),
                work.sizes.pairs, str(work.sizes.width), str(work.device),
            ],
            cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
            timeout=2 * LIMIT + START,
        )  # fmt: skip
        said = f"exit code {done.returncode}; {(done.stdout + done.stderr).strip()[-500:]}"
    except subprocess.TimeoutExpired as error:
        said = f"stopped after {error.timeout:g} s"
    if not out.is_file():
        raise RuntimeError(f"{name}: {said}")
    return json.loads(out.read_text(encoding="utf-8"))


def _kept(work: Workplace) -> Path:
    return work.folder / "peers" / "exact.npz"


def measured(
    influence: Callable[..., Tensor],
    encoder: nn.Module,
    train: Pair,
    queries: Pair,
    damping: float,
) -> tuple[dict[str, Any], Tensor | None]:
    """What a script's calls and the plain pass take, and the influences of the first call.

    Each call is made twice, and its faster run counts. ``None`` stands for one for which the
    memory does not suffice; those for which there is no time are missing. Without a single call
    there is an ``error``.
    """
    tensors, device = (*train, *queries), train[0].device
    plain: dict[str, float | None] = {}
    for words, own, ordered, batch in _settings(encoder, tensors, BATCHES):
        job = partial(plain_pass, own.requires_grad_(), _pairs(ordered, batch))
        took = fits(partial(seconds, job, device, 2))
        plain[words] = None if took is None else round(took["wall"], DIGITS)
    calls: dict[str, float | None] = {}
    values: list[Tensor] = []

    def call(own: nn.Module, ordered: list[Tensor], options: dict[str, int]) -> None:
        x, noisy, y, copies = ordered
        encoder = copy.deepcopy(own).requires_grad_()
        found = influence(encoder, (x, noisy), (y, copies), damping, **options)
        if not values:
            values.append(found.detach().cpu())

    batches = BATCHES if "batch" in inspect.signature(influence).parameters else (0,)
    cost.forget_peak(device)
    try:
        with ending(LIMIT):
            for words, own, ordered, batch in _settings(encoder, tensors, batches):
                job = partial(call, own, ordered, {"batch": batch} if batch else {})
                for _ in range(2):
                    took = fits(partial(seconds, job, device, 1, 0))
                    if took is None:
                        calls[words] = None
                        break
                    before = calls.get(words) or took["wall"]
                    calls[words] = round(min(before, took["wall"]), DIGITS)
    except OutOfTime:
        pass
    found: dict[str, Any] = {
        "plain": plain, "calls": calls, "bytes": cost.peak_bytes(device),
    }  # fmt: skip
    done, unit = (sorted(filter(None, rows.values())) for rows in (calls, plain))
    if not done:
        return found | {"error": f"no call done in {LIMIT:g} s and the memory at hand"}, None
    return found | {"seconds": done[0], "passes": round(done[0] / unit[0], DIGITS)}, values[0]


def _settings(
    encoder: nn.Module, tensors: Sequence[Tensor], batches: Sequence[int]
) -> Iterator[tuple[str, nn.Module, list[Tensor], int]]:
    """Encoder and images in each layout, with each batch size; 0 is the script's own."""
    n = len(tensors[0])
    for layout in layouts_of(encoder) if tensors[0].device.type == "cpu" else LAYOUTS:
        own, ordered = in_layout(layout, encoder, tensors)
        for batch in sorted({min(batch, n) for batch in batches}):
            words = f"batches of {batch}" if batch else "own batches"
            yield f"{layout}, {words}", own, ordered, batch


def _pairs(tensors: Sequence[Tensor], batch: int) -> list[Tensor]:
    x, noisy, y, copies = (one.split(batch) for one in tensors)
    return [torch.cat(pair) for pair in zip((*x, *y), (*noisy, *copies), strict=True)]


def release(package: str) -> str:
    """A library's version; ours is not installed on the machine with a card."""
    return __version__ if package == "influence-ssl" else version(package)


def main() -> None:
    """One script: with the recorded encoder, and with one of full width."""
    parser = argparse.ArgumentParser(description="Measure one script on a device.")
    for name in ("script", "out", "exact", "profile"):
        parser.add_argument(name, type=str if name == "profile" else Path)
    parser.add_argument("width", type=int)
    parser.add_argument("device", type=torch.device)
    options = parser.parse_args()
    script = runpy.run_path(str(options.script))
    work = work_of(Task("pairs", options.profile))
    expected, λ = exact(work, options.exact)
    train, queries = (
        (x.to(options.device), noisy.to(options.device)) for x, noisy in (work.train, work.queries)
    )
    torch.manual_seed(0)
    wide = cifar_resnet18(options.width).eval()
    record: dict[str, Any] = {
        "package": script["PACKAGE"], "version": release(script["PACKAGE"]),
        "method": script["METHOD"], "lines": lines(options.script),
    }  # fmt: skip
    for words, encoder in (("recorded", work.encoder), ("wide", wide)):
        try:
            row, values = measured(
                script["influence"], encoder.to(options.device), train, queries, λ
            )
            if values is not None:
                found = usable(values, expected.shape)
                row |= agreement(found, expected) if words == "recorded" else {}
        except Exception as error:  # whatever a foreign library raises is the finding
            row = {"error": words_of(error)}
        record[words] = row
        with replacing(options.out, parents=True) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
