"""Stopped anywhere, also within an epoch, a training ends where an uninterrupted one ends."""

import dataclasses

import pytest
import torch

from influence_lab.datasets import make_scenes
from influence_lab.pretrain import checkpoint, pretrain, settings_for
from influence_lab.pretrain import train as training
from influence_lab.pretrain.checkpoint import read_checkpoint
from influence_lab.pretrain.methods import Method
from influence_ssl import InfluenceError


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(96, 0).images, make_scenes(40, 1).images


def train(method, folder, scenes, **how):
    return pretrain(settings_for(method, "tiny"), 0, *scenes, folder, progress=False, **how)


def stop_at(step, monkeypatch):
    """Ctrl-C within the given step, counted from 1, after its update."""
    calls = []

    def interrupt(self, tau):
        calls.append(tau)
        if len(calls) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Method, "after_step", interrupt)


def same(a, b):
    left, right = a.method.state_dict(), b.method.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("method", ["simclr", "supervised"])
@pytest.mark.parametrize("step", [3, 5])
def test_resumed_within_an_epoch(method, step, tmp_path, scenes, monkeypatch):
    whole = train(method, tmp_path / "whole", scenes)
    folder = tmp_path / "half"
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            train(method, folder, scenes, save_seconds=0)
    # Three steps an epoch: the step that was interrupted is not in the checkpoint.
    state = read_checkpoint(folder / "checkpoint.pt")
    done = 3 * len(state["epochs"]) + state["place"]["step"]
    assert done == step - 1
    resumed = train(method, folder, scenes)
    assert same(whole, resumed)
    assert [e["loss"] for e in whole.epochs] == [e["loss"] for e in resumed.epochs]
    assert resumed.epochs[len(state["epochs"])]["seconds"] > state["place"]["seconds"]


def test_often_saved_is_the_same_training(tmp_path, scenes):
    saved = []
    original = checkpoint.save

    def count(*arguments):
        saved.append(arguments[-1].step)
        original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", count)
        often = train("byol", tmp_path / "often", scenes, save_seconds=0)
    assert saved == [1, 2, 0, 1, 2, 0]
    assert same(often, train("byol", tmp_path / "seldom", scenes))


def test_weights_that_are_no_numbers_replace_no_checkpoint(tmp_path, scenes, monkeypatch):
    train("simclr", tmp_path, scenes, stop_after=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def spoil(self, tau):
        with torch.no_grad():
            self.encoder.conv1.weight[0] = float("nan")

    monkeypatch.setattr(Method, "after_step", spoil)
    with pytest.raises(
        InfluenceError, match=r"epoch 2: the loss is not finite.*checkpoint is kept"
    ):
        train("simclr", tmp_path, scenes, save_seconds=0)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_from_before_a_setting_existed_had_its_default(tmp_path, scenes):
    """What version 0.1.0 wrote: no clip, no place within an epoch, no precision of an epoch."""
    settings = dataclasses.replace(settings_for("supervised", "tiny"), bf16=True)
    whole = pretrain(settings, 0, *scenes, tmp_path / "whole", progress=False)
    pretrain(settings, 0, *scenes, tmp_path / "old", stop_after=1, progress=False)
    path = tmp_path / "old" / "checkpoint.pt"
    state = read_checkpoint(path)
    del state["settings"]["clip"], state["place"], state["epochs"][0]["bf16"]
    state["settings"]["bf16"] = False
    torch.save(state, path)
    resumed = pretrain(settings, 0, *scenes, tmp_path / "old", progress=False)
    assert same(whole, resumed)
    state["settings"]["augmentation"]["flip"] = 0.25
    torch.save(state, path)
    with pytest.raises(InfluenceError, match="made with other settings"):
        pretrain(settings, 0, *scenes, tmp_path / "old", progress=False)


def test_the_seconds_of_an_epoch_end_when_the_device_does(tmp_path, scenes, monkeypatch):
    """The loss waits for a card, which is still at work when its last step has been started."""
    now, finite = [0.0], training._finite

    def wait(run, losses):
        now[0] += 5
        return finite(run, losses)

    monkeypatch.setattr(training, "_finite", wait)
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])
    run = train("supervised", tmp_path, scenes)
    assert [epoch["seconds"] for epoch in run.epochs] == [5, 5]


@pytest.mark.parametrize("fast", [False, True])
def test_bf16_only_where_it_is_fast_and_recorded(fast, tmp_path, scenes, monkeypatch):
    monkeypatch.setattr(training, "fast_in_bf16", lambda device: fast)
    used = []
    loss = Method._two

    def watch(self, module, views):
        used.append(torch.is_autocast_enabled("cpu"))
        return loss(self, module, views)

    monkeypatch.setattr(Method, "_two", watch)
    settings = dataclasses.replace(settings_for("simclr", "tiny"), bf16=True, epochs=1)
    run = pretrain(settings, 0, *scenes, tmp_path, progress=False)
    assert set(used) == {fast}
    assert [epoch["bf16"] for epoch in run.epochs] == [fast]


def without(state, *path):
    part = state
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]


CHANGES = {
    "a missing weight": lambda s: without(s, "method", next(iter(s["method"]))),
    "a foreign weight": lambda s: s["method"].update(other=torch.zeros(1)),
    "another optimiser": lambda s: s["optimiser"]["param_groups"][0]["params"].pop(),
    "no augmentation": lambda s: without(s, "settings", "augmentation"),
    "a foreign place": lambda s: s.update(place={"where": 1}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_does_not_fit_is_named(change, tmp_path, scenes):
    train("simclr", tmp_path, scenes, stop_after=1)
    path = tmp_path / "checkpoint.pt"
    state = read_checkpoint(path)
    CHANGES[change](state)
    torch.save(state, path)
    before = path.read_bytes()
    with pytest.raises(InfluenceError, match=r"checkpoint.pt: does not fit .*begin anew$"):
        train("simclr", tmp_path, scenes)
    assert path.read_bytes() == before


def test_another_device_cannot_go_on_within_an_epoch(tmp_path, scenes, monkeypatch):
    """A generator's state is its device's own: 16 bytes stand for a card's."""
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train("simclr", tmp_path, scenes, save_seconds=0)
    path = tmp_path / "checkpoint.pt"
    state = read_checkpoint(path)
    assert state["place"]["device"] == "cpu"
    state["place"] |= {"device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)}
    torch.save(state, path)
    with pytest.raises(InfluenceError, match=r"within an epoch on cuda, .*finish the epoch there"):
        train("simclr", tmp_path, scenes)
