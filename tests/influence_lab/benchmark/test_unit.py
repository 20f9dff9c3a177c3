"""The unit of all costs is the faster plain pass, and a whole call is what is counted in it."""

import pytest
import torch
from torch import nn

from influence_lab.benchmark import timing
from influence_lab.cli import main
from influence_lab.experiments import cost
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_lab.records import results
from influence_ssl import GaussianNoise, LoGra
from influence_ssl.curvature import Fitted

FEW = cost.Sizes(width=16, batch=6, rounds=2, slow_batch=4, slow_rounds=2, direct=8)


@pytest.fixture
def spend(monkeypatch):
    """A clock that stands still but for what is spent on it; the processor's runs twice as fast."""
    now = [0.0]
    clocks = {"wall": lambda: now[0], "cpu": lambda: 2 * now[0]}
    monkeypatch.setattr(timing, "CLOCKS", clocks)
    monkeypatch.setattr(cost, "CLOCKS", clocks)

    def spend(amount):
        now[0] += amount

    return spend


def is_last(x):
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def plain(spend, seconds):
    """A plain pass that takes so many seconds a pair in each layout."""

    def plain_pass(encoder, pairs):
        last = is_last(pairs[0])
        assert is_last(encoder.layer1[0].conv1.weight) == last
        spend(seconds["channels-last" if last else "contiguous"] * sum(len(x) / 2 for x in pairs))

    return plain_pass


@pytest.mark.parametrize("seconds", [(4.0, 5.0), (5.0, 4.0)])
def test_the_unit_is_the_faster_layout(spend, monkeypatch, seconds):
    each = dict(zip(timing.LAYOUTS, seconds, strict=True))
    monkeypatch.setattr(timing, "plain_pass", plain(spend, each))
    units = timing.plain_passes(cifar_resnet18(16), [torch.randn(4, 3, 8, 8)])
    assert list(units) == list(timing.LAYOUTS)
    found = timing.ratios(lambda: spend(4.0), units, rounds=3, slow_rounds=1)
    assert found == {"wall": [0.5] * 3, "cpu": [0.5] * 3}
    slow = iter([50.0, 40.0])
    assert timing.ratios(lambda: spend(next(slow)), units, 3, slow_rounds=2)["wall"] == [6.25, 5.0]


def test_the_unit_is_one_layout_in_all_rounds(spend):
    """The faster one by the median: the fastest of each round would be a unit by chance."""
    contiguous, last = iter([2.0, 9.0, 2.0]), iter([3.0, 1.0, 3.0])
    units = {"contiguous": lambda: spend(next(contiguous)), "other": lambda: spend(next(last))}
    found = timing.timed(units, [lambda: spend(18.0)], 3)
    assert found.layout("wall") == "contiguous"
    assert found.unit("wall").tolist() == [2.0, 9.0, 2.0]
    assert found.ratios("wall")[:, 0].tolist() == [9.0, 2.0, 9.0]


def test_both_layouts_compute_the_same_gradients():
    encoder, grads = cifar_resnet18(16), []
    pairs = [torch.randn(4, 3, 8, 8)]
    for name in timing.LAYOUTS:
        own, given = timing.in_layout(name, encoder, pairs)
        assert is_last(own.conv1.weight) == (name == "channels-last")
        own.zero_grad = lambda set_to_none: None
        timing.plain_pass(own, given)
        grads.append(own.layer4[1].conv2.weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)
    assert encoder.conv1.weight.grad is None


@pytest.mark.parametrize(("width", "safe"), [(8, 1), (16, 2)])
def test_a_layout_in_which_foreign_memory_is_overwritten_is_left_out(width, safe):
    assert len(timing.layouts_of(cifar_resnet18(width))) == safe
    wide = nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 8, 1)
    assert len(timing.layouts_of(nn.Sequential(*wide))) == 2


NOISE, PROJECT, FIT, FORM, PLAIN = 0.25, 10.0, 100.0, 1.0, 4.0


def test_everything_that_a_call_does_is_counted(spend, monkeypatch):
    """The real scorer, whose parts take a time of their own: noise for each image, projections
    each time they are made, the curvature each time it is fitted or asked."""
    monkeypatch.setattr(
        timing, "plain_pass", plain(spend, {"contiguous": 5, "channels-last": PLAIN})
    )
    monkeypatch.setattr(cost, "fast_in_bf16", lambda device: True)
    monkeypatch.setattr(cost, "SETTINGS", {cost.MAIN: cost.SETTINGS[cost.MAIN]})
    monkeypatch.setattr(cost, "TOTALS", (8,))
    noise, project, fit, form = (
        GaussianNoise.__call__, LoGra.project, LoGra.fit, Fitted.__call__,
    )  # fmt: skip

    def spending(original, amount):
        def work(*arguments):
            spend(amount(*arguments))
            return original(*arguments)

        return work

    monkeypatch.setattr(
        GaussianNoise, "__call__", spending(noise, lambda _, x, *__: NOISE * len(x))
    )
    monkeypatch.setattr(LoGra, "project", spending(project, lambda *_: PROJECT))
    monkeypatch.setattr(LoGra, "fit", spending(fit, lambda *_: FIT))
    monkeypatch.setattr(Fitted, "__call__", spending(form, lambda _, g: FORM * len(g)))
    record = cost.measure(cifar_resnet18(16), torch.randn(8, 3, 8, 8), FEW)
    one = record["settings"][cost.MAIN]["wall"]
    # A pair: its noise and its form. Once: the fit, projections and the checks' noise.
    assert one["pair"] == pytest.approx((NOISE + FORM) / PLAIN)
    assert one["fixed"] >= FIT + PROJECT + 2 * NOISE
    # On 8 images of random gradients, in one chunk: one fit and the forms.
    assert one["curvature"]["8"] == pytest.approx((FIT + 8 * FORM) / (8 * PLAIN))
    assert one["total"]["8"] == pytest.approx(
        one["pair"] + one["fixed"] / (8 * PLAIN) + one["curvature"]["8"], abs=1e-3
    )
    assert record["direct"]["wall"] == pytest.approx(
        one["pair"] + one["fixed"] / (8 * PLAIN), abs=1e-3
    )
    assert record["layout"] == {"wall": "channels-last", "cpu": "channels-last"}
    assert record["seconds a pair"] == {"wall": PLAIN, "cpu": 2 * PLAIN}
    assert record["settings"][cost.MAIN]["cpu"]["total"] == one["total"]


def test_chunks_are_multiplied_and_the_solve_is_not(spend, monkeypatch):
    """Of 4 chunks: one solve, four times what is done with each of them."""
    monkeypatch.setattr(cost, "CHUNK", 16)

    def fit(self, gradients):
        for g in gradients:
            spend(len(g) * 2.0)
        spend(1000.0)
        return lambda g: spend(len(g) * 3.0)

    monkeypatch.setattr(LoGra, "fit", fit)
    found = cost._algebra(cifar_resnet18(4), rank=2, joint=False, images=64)
    assert found == {"wall": 64 * 5.0 + 1000, "cpu": 2 * (64 * 5.0 + 1000)}


def test_bfloat16_that_is_emulated_is_timed_once_on_few_pairs(spend, monkeypatch):
    asked = []

    def score(encoder, images, setting, batch):
        asked.append((setting.bf16, setting.rank, len(images)))
        spend(1 + len(images) * (20 if setting.bf16 else 2))

    monkeypatch.setattr(timing, "plain_pass", plain(spend, {"contiguous": 4, "channels-last": 5}))
    monkeypatch.setattr(cost, "fast_in_bf16", lambda device: False)
    monkeypatch.setattr(cost, "_score", score)
    monkeypatch.setattr(cost, "_algebra", lambda *_: dict.fromkeys(timing.CLOCKS, 0.0))
    record = cost.measure(cifar_resnet18(4), torch.randn(8, 3, 8, 8), FEW)
    assert record["bfloat16"] == "emulated"
    assert {rank for bf16, rank, _ in asked if bf16} == {16}
    assert {n for bf16, _, n in asked if bf16} == {cost.FEW, FEW.slow_batch}
    assert {n for bf16, _, n in asked if not bf16} == {cost.FEW, FEW.batch, FEW.direct}
    pairs = {name: one["wall"]["pair"] for name, one in record["settings"].items()}
    half = {name for name, one in cost.SETTINGS.items() if one.bf16}
    assert set(pairs) == set(cost.SETTINGS) - half | {cost.EMULATED}
    assert pairs == {name: 5.0 if name == cost.EMULATED else 0.5 for name in pairs}


def test_the_command_records_the_costs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(cost.SIZES, "tiny", FEW._replace(width=4))
    some = (cost.MAIN, cost.EMULATED)
    monkeypatch.setattr(cost, "SETTINGS", {name: cost.SETTINGS[name] for name in some})
    assert main(["reproduce", "cost", "--profile", "tiny", "--results", str(tmp_path)]) == 0
    made, tracked = (results.load_record("tiny", "cost", root) for root in (tmp_path, None))
    assert made.keys() == tracked.keys()
    for name, one in made["settings"].items():
        for clock in ("wall", "cpu"):
            assert one[clock].keys() == tracked["settings"][cost.MAIN][clock].keys()
        assert cost.total(made, name) == one["wall"]["total"]["50000"]
    assert "of the best plain forward and backward pass" in capsys.readouterr().out
