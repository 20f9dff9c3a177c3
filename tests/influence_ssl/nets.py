"""The networks and the slow reference that the tests of the core share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_ssl import InfluenceScorer, Scores
from influence_ssl.curvature import Curvature, Gradients, Layer


class Residual(nn.Module):
    """A small residual network: strides, groups, dilation, in-place ReLU, one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.twice = nn.Conv2d(8, 8, 3, padding="same", dilation=2, padding_mode="reflect")
        self.depthwise = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        x = F.relu(self.down(x), inplace=True)
        x = x + F.relu(self.twice(x))
        x = x + F.gelu(self.twice(x))
        x = self.depthwise(x) + x
        return self.head(x.mean((2, 3)))


class Sequence(nn.Module):
    """Linear layers on sequences, with attention between the tokens of one example."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, stride=4)
        self.qkv = nn.Linear(6, 18)
        self.out = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        return (tokens + self.out(F.scaled_dot_product_attention(q, k, v))).mean(1)


class Windows(nn.Module):
    """A linear layer whose first axis holds the windows of all examples, as in Swin."""

    def __init__(self, example_first: bool = True) -> None:
        super().__init__()
        self.mix = nn.Linear(12, 7)
        self.example_first = example_first

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        windows = F.unfold(x, 2, stride=2).transpose(1, 2)
        if not self.example_first:
            windows = windows.transpose(0, 1)
        y = self.mix(windows.reshape(-1, 1, 12)).tanh()
        y = y.reshape(b, -1, 7) if self.example_first else y.reshape(-1, b, 7).transpose(0, 1)
        return y.mean(1)


class Kept:
    """A curvature with the projections of another that keeps the layers and the gradients."""

    def __init__(self, inner: Curvature) -> None:
        self.inner = inner

    def project(self, layers: list[Layer]) -> None:
        self.inner.project(layers)

    def fit(self, gradients: Gradients) -> Callable[[Tensor], Tensor]:
        self.layers, self.rows = gradients.layers, torch.cat(list(gradients))
        return lambda g: g.sum(1)


def build(kind: type[nn.Module], seed: int = 0, **arguments) -> nn.Module:
    """The network in float64 with random batch-norm statistics, in train mode as a user has it."""
    torch.manual_seed(seed)
    net = kind(**arguments).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return net


def images(n: int = 9, size: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, size, size, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(seed))  # fmt: skip


def score(net: nn.Module, x: Tensor, **settings) -> Scores:
    return InfluenceScorer(net, progress=False, **settings).score(x)


def weights(net: nn.Module) -> list[Tensor]:
    """θ: the weights of the Conv2d and Linear modules, in the order of their definition."""
    return [m.weight for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def brute_force_gradients(net: nn.Module, x: Tensor, x_hat: Tensor) -> list[np.ndarray]:
    """Per-example gradients by plain autograd, one example at a time: a list of (n, O·I)."""
    net.eval()
    rows: list[list[np.ndarray]] = []
    for clean, noisy in zip(x, x_hat, strict=True):
        loss = 1 - F.cosine_similarity(net(clean[None]), net(noisy[None]), eps=0.0).sum()
        found = torch.autograd.grad(loss, weights(net))
        rows.append([g.flatten().numpy() for g in found])
    return [np.stack(column) for column in zip(*rows, strict=True)]


def quadratic(g: np.ndarray, damping: float) -> np.ndarray:
    """gᵀ(GᵀG/n + λI)⁻¹g with a dense inverse."""
    h = g.T @ g / len(g) + damping * np.eye(g.shape[1])
    return np.einsum("ni,ij,nj->n", g, np.linalg.inv(h), g)


def relative(g: np.ndarray, c: float) -> float:
    return c * (g**2).sum() / len(g) / min(g.shape)
