"""The cost model against counted operations and measured memory."""

import dataclasses

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from influence_lab.datasets import make_scenes
from influence_lab.pretrain import METHODS, cost, pretrain, settings_for
from influence_lab.pretrain.methods import build
from influence_lab.pretrain.train import _optimiser

CLASSES = 10


def few(method, profile, batch):
    return dataclasses.replace(settings_for(method, profile), batch=batch)


def loss(net, settings, device="cpu"):
    side = settings.augmentation.crop
    views = [torch.ones(settings.batch, 3, side, side, device=device) for _ in range(net.views)]
    return net.loss(views, torch.zeros(settings.batch, dtype=torch.long, device=device))


def by_hand(settings):
    """Two operations for each weight at each position of its output.

    A layer's backward pass costs two forward passes, for its weights and for its input; the first
    layer's input needs none. BYOL's target network runs forward only.
    """
    large, width, crop = settings.stem == "large", settings.width, settings.augmentation.crop
    side = (crop + 1) // 2 if large else crop
    stem = encoder = 2 * 3 * (7 if large else 3) ** 2 * width * side**2
    side = (side + 1) // 2 if large else side
    for stage in range(4):
        inputs, outputs = (width, width) if stage == 0 else (width << stage - 1, width << stage)
        side = side if stage == 0 else (side + 1) // 2
        convolutions = 9 * outputs * (inputs + 3 * outputs)
        encoder += 2 * side**2 * (convolutions + (inputs * outputs if stage else 0))
    features, hidden, output = 8 * width, settings.hidden, settings.output
    projector = {
        "supervised": features * CLASSES,
        "barlow": hidden * (features + hidden + output),
    }.get(settings.method, hidden * (features + output))
    views = settings.batch * (1 if settings.method == "supervised" else 2)
    predictor = 4 * output * hidden if settings.method == "byol" else 0
    flops = views * (3 * (encoder + 2 * projector + predictor) - stem)
    if settings.method == "byol":
        flops += views * (encoder + 2 * projector)
    if settings.method == "simclr":
        flops += 3 * 2 * views**2 * output
    if settings.method == "barlow":
        flops += 3 * 2 * settings.batch * output**2
    return flops


@pytest.mark.parametrize("profile", ["tiny", "cpu", "paper", "large"])
@pytest.mark.parametrize("method", METHODS)
def test_operations_are_those_of_the_layers_shapes(method, profile):
    settings = few(method, "paper" if profile == "large" else profile, 8)
    if profile == "large":
        views = dataclasses.replace(settings.augmentation, crop=112)
        settings = dataclasses.replace(settings, stem="large", augmentation=views)
    assert cost.step_flops(settings, CLASSES) == pytest.approx(by_hand(settings), rel=0.01)


def peak(work):
    """The most bytes of tensors that were in use at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    used = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        used += event.nbytes()
        most = max(most, used)
    return most


@pytest.mark.parametrize(("profile", "batch"), [("tiny", 32), ("cpu", 8)])
@pytest.mark.parametrize("method", METHODS)
def test_memory_is_what_is_measured(method, profile, batch):
    settings = few(method, profile, batch)
    kept = []

    def two_steps():
        net = build(settings, CLASSES, 0)
        optimiser = _optimiser(net, settings)
        kept.extend([net, optimiser])
        for _ in range(2):
            value = loss(net, settings)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()

    predicted = cost.peak_memory(settings, 0, 0, CLASSES, cost.DEVICES["cpu"]) - cost.PROCESS
    assert predicted == pytest.approx(peak(two_steps), rel=0.2)


def test_more_units_take_less_time_and_less_memory_each():
    settings = settings_for("simclr", "paper")
    one = cost.DEVICES["cuda"]
    eight = dataclasses.replace(one, units=8, processes=8)
    times = [cost.seconds(settings, 50_000, 10, device) for device in (one, eight)]
    assert times[0] / 8 < times[1] < times[0]
    memory = [cost.peak_memory(settings, 50_000, 1024, 10, device) for device in (one, eight)]
    assert memory[0] / 8 < memory[1] < memory[0]


def test_a_training_s_peak_on_a_card_is_its_own(tmp_path, monkeypatch):
    card, peak = torch.device("cuda", 1), {torch.device("cuda", 1): 9e9}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak.get)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: peak.__setitem__(device, 1e9)
    )
    forget, asked = cost.forget_peak, cost.peak_bytes
    monkeypatch.setattr(cost, "forget_peak", lambda device: forget(card))
    monkeypatch.setattr(cost, "peak_bytes", lambda device: asked(card))
    data = make_scenes(64, 0).images
    run = pretrain(settings_for("supervised", "tiny"), 0, data, None, tmp_path, progress=False)
    assert {epoch["bytes"] for epoch in run.epochs} == {1e9}
    forget(torch.device("cpu"))
    assert asked(torch.device("cpu")) > 1e6


def test_stated_before_and_compared_after(tmp_path, capsys):
    data = make_scenes(64, 0).images, make_scenes(20, 1).images
    run = pretrain(settings_for("supervised", "tiny"), 0, *data, tmp_path)
    said = capsys.readouterr().err
    assert "predicted: " in said
    assert "for 2 epochs" in said
    assert said.index("predicted: ") < said.index("took: ")
    found = cost.measured(run.epochs)
    assert found["seconds"] == sum(epoch["seconds"] for epoch in run.epochs)
    assert 0.1e9 < found["bytes"] < 100e9
    predicted = cost.predict(run.settings, data[0], cost.here(torch.device("cpu"), False))
    assert predicted["bytes"] > cost.PROCESS
    spoken = [cost.duration(seconds) for seconds in (0.4, 42, 130, 6000, 4e6)]
    assert spoken == ["0 s", "42 s", "2 min", "1 h 40 min", "46 days"]
