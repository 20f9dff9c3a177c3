"""A working directory for tests of the command: images, encoders, and how to run it."""

from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as TF

from influence_ssl import Scores
from influence_ssl.command.main import main

ENCODERS = """
import signal
import torch
from torch import nn
from torchvision.transforms import functional as TF


def small():
    first, second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
    return nn.Sequential(first, nn.GELU(), second, nn.Flatten(), nn.Linear(72, 5))


def resizing():
    return small(), lambda image: TF.to_tensor(image.resize((10, 10)))


def halving(x, index, draw, seed):
    return x / 2 + (index[:, None, None, None] + draw) / 100


def misspelt(x, index, draw, seed):
    return x + noize


def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(300, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += len(x) > 8
        if self.calls > 1:
            self.fail()  # in the middle: at the second batch
        return self.layer(x.flatten(1))


class Interrupted(Failing):
    def fail(self):
        signal.raise_signal(signal.SIGINT)


class Broken(Failing):
    def fail(self):
        raise RuntimeError("shapes do not\\n   fit.")


class Exhausted(Failing):
    def fail(self):
        raise torch.OutOfMemoryError("many\\nlines")


class Zero(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(300, 4, bias=False)

    def forward(self, x):
        dark = (x.flatten(1).max(1).values > 0)[:, None]
        return self.layer(x.flatten(1)) * dark


class Spare(Zero):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(4, 4)


class Tuple(Zero):
    def forward(self, x):
        return super().forward(x), x


def not_finite():
    module = nn.Linear(300, 4)
    module.weight.data[1, 2] = torch.nan
    return module


def shouting():
    raise ValueError("no\\nweights")


def number():
    return 3


def needs_argument(path):
    return nn.Linear(300, 4)
"""


def run(*arguments: object, data: str = "images", encoder: str = "mine.py:small") -> int:
    given = [str(argument) for argument in arguments]
    if "--out" not in given:
        given += ["--out", "scores.npz"]
    fixed = ["--data", data, "--encoder", encoder, "--device", "cpu", "--batch-size", "8"]
    fixed += ["--draws", "1"]
    return main(["score", *fixed, *given])


def scored(*arguments: object, **settings: str) -> Scores:
    assert run(*arguments, **settings) == 0
    return Scores.load("scores.npz")


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.GELU(),
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


def outputs() -> list[Path]:
    files = Path.cwd().rglob("*.[cnp][spa]*")
    return sorted(path for path in files if ".partial" not in str(path))


def listing() -> list[str]:
    return sorted(str(path.relative_to("images")) for path in Path("images").rglob("*.png"))


def tensors() -> torch.Tensor:
    return torch.stack([TF.to_tensor(Image.open(Path("images", name))) for name in listing()])
