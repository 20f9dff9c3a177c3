"""Part b: what scoring costs on a card, beside the best plain pass and beside the card's rates.

Values do not matter for speed, so the encoder is an untrained ResNet-18. The plain pass is a
forward and backward pass over the same pairs, ready-made on the card, in the faster of the two
memory layouts (:mod:`influence_lab.benchmark.timing`) and at its best batch size. A whole call is
what a user makes: images in the host's memory, noise, checks, curvature, scores.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from influence_lab.benchmark.scale import seconds_of_noise
from influence_lab.benchmark.timing import pairs_of, plain_passes
from influence_lab.gpu.clocks import fits, seconds
from influence_lab.gpu.precision import PRECISIONS, computing
from influence_lab.gpu.steps import Step, short
from influence_lab.gpu.workplace import Workplace
from influence_lab.measures.agreement import spearman
from influence_lab.pretrain import cost
from influence_lab.pretrain.resnets import cifar_resnet18, normalise
from influence_ssl import InfluenceScorer, LoGra, Scores

DIGITS = 4
_KERNELS = 40
_TOP = 20


def steps(work: Workplace) -> list[Step]:
    """The card's rates; for each precision batch sizes and calls; then what is worth less."""
    speed, least, found = Speed(work), work.sizes.least, []

    def add(name: str, seconds: float, run: Callable[..., Any], *arguments: Any) -> None:
        found.append(Step(name, least * seconds, short(run, *arguments)))

    first, *further = work.sizes.ranks
    add("rates", 15, speed.rates)
    for precision in PRECISIONS:
        add(f"batch sizes, {precision}", 40, speed.batch_sizes, precision)
        add(f"rank {first}, {precision}", 30, speed.whole_call, first, precision)
        if precision == "bfloat16":
            add("agreement with the CPU", 60, speed.agreement)
        if precision != "float32":
            add(f"kernels, {precision}", 20, speed.kernels, precision)
    add("queries", 40, speed.queries)
    for rank in further:
        for precision in PRECISIONS:
            add(f"rank {rank}, {precision}", 40, speed.whole_call, rank, precision)
    return found


class Speed:
    """The encoder and the images that are timed, and one method for each kind of step."""

    def __init__(self, work: Workplace) -> None:
        self.work, self.sizes, self.device = work, work.sizes, work.device
        self._counted: dict[int, int] = {}  # operations by rank

    @cached_property
    def encoder(self) -> nn.Module:
        """An untrained ResNet-18 on the device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return cifar_resnet18(self.sizes.width).to(self.device).eval()

    @cached_property
    def images(self) -> Tensor:
        """The training images in the host's memory."""
        return normalise(self.work.train.tensor()[: self.sizes.images])

    def score(self, images: Tensor, rank: int, precision: str, batch: int | None = None) -> Scores:
        """A whole call."""
        return self.scorer(self.encoder, rank, precision, batch).score(images)

    def scorer(
        self, encoder: nn.Module, rank: int, precision: str, batch: int | None
    ) -> InfluenceScorer:
        return InfluenceScorer(
            encoder, curvature=LoGra(rank), batch_size=batch, progress=False,
            dtype=PRECISIONS[precision].dtype,
        )  # fmt: skip

    def rates(self) -> dict[str, Any]:
        """Operations a second of square products, bytes a second of copies, seconds of noise."""
        n, device = self.sizes.matrix, self.device
        found: dict[str, Any] = {"products": {}}
        for name, precision in PRECISIONS.items():
            a, b = (torch.randn(n, n, device=device, dtype=precision.dtype) for _ in range(2))
            with computing(precision):
                took = seconds(partial(torch.mm, a, b), device, 5)
            found["products"][name] = 2 * n**3 / took["wall"]
        x = torch.zeros(4 * n * n, device=device)
        y = torch.zeros_like(x)
        found["copy"] = 2 * x.nbytes / seconds(partial(y.copy_, x), device, 5)["wall"]
        host = torch.zeros(n * n, pin_memory=device.type == "cuda")
        part = y[: n * n]
        found["from the host"] = host.nbytes / seconds(partial(part.copy_, host), device, 5)["wall"]
        found["noise"] = seconds_of_noise(self.images.shape[1:])
        return found

    def batch_sizes(self, precision: str) -> dict[str, Any]:
        """Seconds of a pair in the plain pass by layout, and of an image in a call, by batch size.

        ``None`` where the memory does not suffice.
        """
        first, rank = self.images[: self.sizes.some], self.sizes.ranks[0]
        found: dict[str, Any] = {"plain": {}, "call": {}}
        with computing(PRECISIONS[precision]):
            for batch in self.sizes.batches:
                found["plain"][str(batch)] = self.plain(self.encoder, first, precision, batch)
                job = partial(self.score, first, rank, precision, batch)
                took = fits(partial(seconds, job, self.device, self.sizes.rounds))
                found["call"][str(batch)] = None if took is None else took["wall"] / len(first)
        return found | {"best": _best(found["call"]), "unit": _least(found["plain"])}

    def plain(
        self, encoder: nn.Module, images: Tensor, precision: str, batch: int
    ) -> dict[str, float | None]:
        """Seconds of a pair in each layout, ``None`` where the memory does not suffice."""
        dtype, rounds = PRECISIONS[precision].dtype, self.sizes.rounds
        pairs = [pair.to(self.device, dtype) for pair in pairs_of(images, batch)]
        found: dict[str, float | None] = {}
        for layout, job in plain_passes(copy.deepcopy(encoder).to(dtype), pairs).items():
            took = fits(partial(seconds, job, self.device, rounds))
            found[layout] = None if took is None else took["wall"] / len(images)
        return found

    def whole_call(self, rank: int, precision: str) -> dict[str, Any]:
        """One call on all images, after one on a few that chooses the kernels.

        ``ratio``: to the plain pass over as many pairs; ``share``: of the rate of products that
        this precision reaches on this device, given the operations that the call needs; ``cpu``:
        seconds of the processor, all threads together.
        """
        sizes = self.work.journal.value(f"batch sizes, {precision}")
        rates = self.work.journal.value("rates")
        if sizes is None or rates is None:
            raise ValueError(f"no batch size and no rate of {precision} yet; see the steps before")
        batch, n = int(sizes["best"]), len(self.images)
        cost.forget_peak(self.device)
        with computing(PRECISIONS[precision]):
            self.score(self.images[: 2 * batch], rank, precision, batch)
            job = partial(self.score, self.images, rank, precision, batch)
            took = seconds(job, self.device, 1, warm_up=0)
        operations = self.operations(rank) * n
        return {
            "images": n,
            "batch": batch,
            "wall": round(took["wall"], DIGITS),
            "cpu": round(took["cpu"], DIGITS),
            "ratio": round(took["wall"] / (n * sizes["unit"]), DIGITS),
            "share": round(operations / took["wall"] / rates["products"][precision], DIGITS),
            "operations": operations,
            "bytes": cost.peak_bytes(self.device),
        }

    def operations(self, rank: int, b: int = 2) -> int:
        """Of one image in a call, curvature apart; the checks at the start cancel out."""
        from torch.utils.flop_counter import FlopCounterMode  # slow to import

        if rank not in self._counted:
            counts, scorer = [], self.scorer(self.encoder, rank, "float32", b)
            for n in (b, 2 * b):
                with FlopCounterMode(display=False) as counter:
                    for _ in scorer.gradients(self.images[:n]):
                        pass
                counts.append(counter.get_total_flops())
            self._counted[rank] = (counts[1] - counts[0]) // b
        return self._counted[rank]

    def kernels(self, precision: str) -> dict[str, Any]:
        """What keeps the device busy, and for which share of a call; the list is a file."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        some, rank = self.images[: self.sizes.seen], self.sizes.ranks[0]
        card = self.device.type == "cuda"
        job = partial(self.score, some, rank, precision, int(self._best_batch(precision)))
        with computing(PRECISIONS[precision]):
            took = seconds(job, self.device, 1)
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card else [])]
            with profile(activities=activities) as seen:
                job()
        events = seen.key_averages()
        order = "self_device_time_total" if card else "self_cpu_time_total"
        table = events.table(sort_by=order, row_limit=_KERNELS, max_name_column_width=80)
        self.work.save_text(f"kernels-{precision}.txt", table)
        busy = sum(e.self_device_time_total for e in events if e.device_type != DeviceType.CPU)
        return {
            "images": len(some),
            "wall": round(took["wall"], DIGITS),
            "cpu": round(took["cpu"], DIGITS),
            "device": round(busy / 1e6, DIGITS),
            "device, share of the wall": round(busy / 1e6 / took["wall"], DIGITS),
        }

    def _best_batch(self, precision: str) -> str:
        sizes = self.work.journal.value(f"batch sizes, {precision}")
        return sizes["best"] if sizes else str(self.sizes.batches[0])

    def agreement(self) -> dict[str, Any]:
        """Scores on the device in each precision beside those of the CPU in float32."""
        some, rank = self.images[: self.sizes.agreed], self.sizes.ranks[0]
        expected = InfluenceScorer(
            self.encoder, curvature=LoGra(rank), device="cpu", progress=False
        ).score(some)
        found = {}
        for name, precision in PRECISIONS.items():
            with computing(precision):
                values = self.score(some, rank, name).values
            gaps = abs(values - expected.values) / expected.magnitude
            found[name] = {
                "rank correlation": round(spearman(values, expected.values).value, 6),
                "largest relative difference": float(gaps.max()),
                "median relative difference": float(sorted(gaps)[len(gaps) // 2]),
            }
        return found

    def queries(self) -> dict[str, Any]:
        """Seconds of a fit that keeps φ of all images, and of the influence on the queries."""
        asked = normalise(self.work.test.tensor()[: self.sizes.queries])
        scorer = self.scorer(
            self.encoder, self.sizes.ranks[0], "bfloat16", int(self._best_batch("bfloat16"))
        )
        scorer.fit(self.images[: 2 * self.sizes.batches[0]], keep=True)
        fit = seconds(partial(scorer.fit, self.images, keep=True), self.device, 1, warm_up=0)
        top = min(_TOP, len(self.images))
        job = partial(scorer.influence, asked, top=top)
        took = seconds(job, self.device, 1, warm_up=0)
        return {
            "images": len(self.images),
            "queries": len(asked),
            "top": top,
            "fit": {clock: round(value, DIGITS) for clock, value in fit.items()},
            "influence": {clock: round(value, DIGITS) for clock, value in took.items()},
        }


def _best(call: dict[str, float | None]) -> str:
    """The batch size of the fastest call."""
    known = {batch: took for batch, took in call.items() if took is not None}
    return min(known, key=lambda batch: known[batch])


def _least(plain: dict[str, dict[str, float | None]]) -> float:
    """The fastest plain pass of all batch sizes and layouts."""
    return min(took for one in plain.values() for took in one.values() if took is not None)
