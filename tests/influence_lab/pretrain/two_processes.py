"""What test_processes compares: run once by it, and once by two processes that share each batch."""

import dataclasses
import sys
from pathlib import Path

import torch

from influence_lab.datasets import make_scenes
from influence_lab.pretrain import METHODS, pretrain, settings_for
from influence_lab.pretrain.methods import build
from influence_lab.pretrain.processes import (
    average_gradients,
    count,
    part,
    processes,
    rank,
    share_batch_norm,
    total,
)


def step(method):
    """Loss, gradients and statistics of one batch, in float64."""
    net = build(dataclasses.replace(settings_for(method, "tiny"), batch=16), 4, 0).double()
    share_batch_norm(net, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(16, 3, 16, 16, generator=generator).double() for _ in range(net.views)]
    labels = torch.arange(16) % 4
    loss = net.loss([part(view) for view in views], part(labels))
    loss.backward()
    average_gradients(net.parameters())
    gradients = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
    return {
        "loss": total(loss.detach()) / count(),
        "gradients": gradients,
        "buffers": dict(net.named_buffers()),
    }


def train(folder):
    """A tiny training; where there are two processes, each has a folder of its own.

    With labels and plain SGD, because LARS makes a rounding error of 1e-7 in the first weights one
    of 5e-3 after four such steps, in one process too.
    """
    data = make_scenes(64, 0).images, make_scenes(20, 1).images
    return pretrain(settings_for("supervised", "tiny"), 0, *data, folder, progress=False)


def main(folder):
    """Write what this process found."""
    with processes("cpu"):
        torch.save({method: step(method) for method in METHODS}, folder / f"steps-{rank()}.pt")
        train(folder / f"rank-{rank()}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
