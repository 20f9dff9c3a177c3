"""Two processes that share each batch end where one process ends."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes

from influence_lab.datasets import make_scenes
from influence_lab.pretrain import METHODS, pretrain, settings_for
from influence_lab.pretrain import train as trainer
from influence_lab.pretrain.checkpoint import read_checkpoint
from influence_ssl import InfluenceError


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder that two Gloo processes wrote, with the environment that torchrun sets."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    script = Path(two_processes.__file__)
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env=common | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_two_is_the_step_of_one(pair, method):
    alone = two_processes.step(method)
    for rank in (0, 1):
        shared = torch.load(pair / f"steps-{rank}.pt", weights_only=True)[method]
        # Losses are formed in float32.
        torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-7)


def test_a_training_of_two_is_the_training_of_one_up_to_rounding(pair, tmp_path):
    alone = two_processes.train(tmp_path)
    shared = read_checkpoint(pair / "rank-0" / "checkpoint.pt")
    losses = [epoch["loss"] for epoch in alone.epochs]
    assert [epoch["loss"] for epoch in shared["epochs"]] == pytest.approx(losses, rel=1e-5)
    for name, weight in alone.method.state_dict().items():
        torch.testing.assert_close(shared["method"][name], weight, rtol=0, atol=1e-5)
    assert not (pair / "rank-1").exists(), "the first process alone writes"


def test_a_batch_that_cannot_be_shared_equally(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "count", lambda: 3)
    images = make_scenes(40).images
    with pytest.raises(InfluenceError, match="3 processes cannot share a batch of 32"):
        pretrain(settings_for("simclr", "tiny"), 0, images, images, tmp_path, progress=False)
