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
