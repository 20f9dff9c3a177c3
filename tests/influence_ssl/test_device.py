"""What holds on every device: none is asked for a value within a pass, and no tensors are mixed.

The meta device has no values, so a pass there shows each question. Fake tensors stand for a card's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from devices import ANSWERS, Asked
from nets import Residual, build, images
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from influence_ssl import (
    Alignment,
    EmpiricalFisher,
    Identity,
    InfluenceError,
    InfluenceScorer,
    Invariance,
    LoGra,
    Supervised,
    _memory,
    _passes,
    curvature,
)
from influence_ssl._gradients import Capture
from influence_ssl._layers import Layer


class Small(nn.Sequential):
    def __init__(self) -> None:
        norm = nn.BatchNorm2d(4)
        super().__init__(nn.Conv2d(3, 4, 3, 2), norm, nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))


class Labelled(torch.utils.data.Dataset):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], i % 3


CASES = {
    "score": {},
    "draws": {"draws": 2},
    "bfloat16": {"dtype": torch.bfloat16},
    "joint": {"curvature": LoGra(2, joint=True)},
    "squared": {"objective": Invariance(distance="squared")},
    "two views": {"objective": Alignment(lambda x: x + torch.randn_like(x))},
    "labels": {"objective": Supervised()},
    "identity": {"curvature": Identity()},
    "exact": {"curvature": EmpiricalFisher(0.1)},
}


def call(case: str, n: int, workers: int) -> Asked:
    net = build(Residual if case == "score" else Small).float()
    settings = {"curvature": LoGra(2), "batch_size": 4, **CASES.get(case, {})}
    scorer = InfluenceScorer(net, device="meta", workers=workers, progress=False, **settings)
    x = Labelled(images(n).float())
    with Asked() as asked:
        if case == "keep":
            scorer.fit(x, keep=torch.float16).influence(x)
        else:
            scorer.score(x, representations=True)
    return asked


@pytest.mark.parametrize("case", [*CASES, "keep"])
def test_a_pass_asks_the_device_nothing(case, monkeypatch):
    """As many questions for 48 images, in 12 batches and 6 chunks, as for 24."""
    monkeypatch.setattr(_passes, "CHUNK", 8)
    few, many = call(case, 24, 0), call(case, 48, 3)
    assert few.counts == many.counts
    assert few.mixed == many.mixed == []
    assert many.counts["_local_scalar_dense"] > 0  # at the end, once for all


def test_images_that_lie_on_the_device_are_checked_before_the_pass(monkeypatch):
    monkeypatch.setitem(ANSWERS, torch.bool, False)  # no image is bad
    counts = []
    for n in (16, 48):
        x = torch.zeros(n, 3, 8, 8, device="meta")
        with Asked() as asked:
            examples = _passes.Examples(x, None)
            for start in range(0, n, 4):
                examples.batch(range(start, start + 4))
        counts.append(asked.counts)
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) > 0


class Two:
    """The gradients of one data set in two batches, for a curvature."""

    def __init__(self, layers: list[Layer], g: Tensor) -> None:
        self.n, self.layers, self.device, self.batch = 2 * len(g), layers, g.device, g

    def __iter__(self):
        yield from (self.batch, self.batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_card_s_tensors_meet_no_others(dtype, monkeypatch):
    """Fake tensors refuse to be mixed, and to be asked before the curvature is solved.

    Noise, forward pass, projection, products and curvature; autograd knows no fake cards.
    """
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: [pinned.append(x.device.type), x][1])
    monkeypatch.setattr(curvature, "free_memory", lambda device: 1e9)
    index = torch.arange(5)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(128, 6))
        layers = [Layer("0", [net[0]], 8, 27), Layer("3", [net[3]], 6, 128)]
        for layer in layers:
            for name, weight in layer.modules[0].named_parameters():
                setattr(layer.modules[0], name, nn.Parameter(weight.detach().to(dtype)))
        LoGra(4).project(layers)
        x = torch.empty(5, 3, 8, 8)
        capture = Capture(net, layers, Invariance(), 0)
        rows = []

        def hook(layer, module, inputs, output):
            columns = layer.inputs(module, inputs[0].to(capture.products))
            found = layer.contract(module, columns, output.detach().to(capture.products))
            assert columns.dtype == found.dtype == dtype  # bfloat16 has the range for products
            rows.append(found.detach().to(capture.working).flatten(1))

        for layer in layers:
            layer.modules[0].register_forward_hook(partial(hook, layer))
        for objective in (Invariance(), Invariance().ahead(x.shape, index, 0, 0), Supervised()):
            batch = x.cpu(), index % 3
            encode = partial(capture.encode, examples=5)
            losses = replace(capture, objective=objective).losses(batch, index, 0, encode)
            assert losses.device.type == "cuda"
            assert losses.dtype == torch.float32
        assert pinned == ["cpu"] * 6  # images and labels, three times
        g = torch.cat(rows[:2], 1)
        for settings in (LoGra(4), LoGra(4, joint=True), EmpiricalFisher()):
            with Asked("cuda") as asked:
                fitted = settings.fit(Two(layers, g))
            assert 0 < sum(asked.counts.values()) <= 4 * len(fitted.blocks)
            assert not asked.mixed
            assert fitted(g).device.type == fitted.embed(g).device.type == "cuda"
            assert fitted(g).dtype == torch.float64


@pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32")
def test_precision_switches_stay_as_they_were():
    net, x = build(Small).float(), images(12).float()
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for on in (True, False):
            for switch in switches:
                switch.allow_tf32 = on
            InfluenceScorer(net, curvature=LoGra(2), progress=False).score(x)
            assert all(switch.allow_tf32 is on for switch in switches)
    finally:
        for switch, on in zip(switches, before, strict=True):
            switch.allow_tf32 = on


def test_memory_of_a_card_counts_what_freed_tensors_left(monkeypatch):
    card, asked = torch.device("cuda:1"), []

    def stating(size):
        return lambda device: [asked.append(device), size][1]

    monkeypatch.setattr(torch.cuda, "mem_get_info", stating((7e9, 80e9)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", stating(60e9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", stating(12e9))
    assert _memory.free_memory(card) == 7e9 + 60e9 - 12e9
    assert asked == [card] * 3


def test_a_rank_is_refused_by_the_memory_of_the_gradients_device(monkeypatch):
    """k² numbers of 8 bytes for each layer, and 32 k² bytes to invert the largest."""
    card = torch.device("cuda:0")
    wide = [Layer(str(n), [nn.Linear(64, 64)], 64, 64) for n in range(3)]

    class Gradients:
        n, layers, device = 10**6, wide, card

    def fits(rank: int) -> float:
        return (3 * 8 + 32) * (rank**2) ** 2

    monkeypatch.setattr(curvature, "free_memory", lambda d: fits(20) if d == card else 0)
    with pytest.raises(InfluenceError, match="the largest rank that does is 20"):
        LoGra(32).fit(Gradients())
