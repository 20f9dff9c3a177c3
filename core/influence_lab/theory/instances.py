"""Random linear encoders and perturbations, scored through the core by differentiation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from influence_ssl import EmpiricalFisher, ExactHessian, Identity, InfluenceScorer, Invariance

Distance = str | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What `Invariance` takes as its distance."""

SHAPES = ((1, 1), (1, 3), (3, 1), (2, 2), (1, 6), (5, 2), (3, 4), (4, 3), (2, 7), (6, 6))
"""(k, d): one row, one column, square, wide and tall (k > d)."""


@dataclass(frozen=True)
class Instance:
    """A linear encoder, n examples with their directions, a step and a damping.

    W (k, d), x (n, d), deltas (n, d), ε = `eps`, λ = `lam`.
    """

    W: np.ndarray
    x: np.ndarray
    deltas: np.ndarray
    eps: float
    lam: float


def random_instances(count: int, seed: int, n: int = 1, unit: bool = True) -> Iterator[Instance]:
    """`count` instances over all `SHAPES`; ε from 0.01 to 10, λ from 0.001 to 10.

    ε and λ are log-uniform; each tenth instance has ε = 10.

    Args:
        count: number of instances.
        seed: seed of NumPy's generator.
        n: examples in each instance.
        unit: whether the rows of `deltas` have length 1; otherwise they are normal.
    """
    rng = np.random.default_rng(seed)
    for number in range(count):
        k, d = SHAPES[(number + number // len(SHAPES)) % len(SHAPES)]
        deltas = rng.normal(size=(n, d))
        if unit:
            deltas /= np.linalg.norm(deltas, axis=1, keepdims=True)
        eps = 10.0 if number % 10 == 0 else 10 ** rng.uniform(-2, 1)
        lam = 10 ** rng.uniform(-3, 1)
        yield Instance(rng.normal(size=(k, d)), rng.normal(size=(n, d)), deltas, eps, lam)


def linear_encoder(W: np.ndarray) -> nn.Linear:
    """x ↦ Wx as a float64 `nn.Linear` without bias."""
    k, d = W.shape
    encoder = nn.Linear(d, k, bias=False).double()
    with torch.no_grad():
        encoder.weight.copy_(torch.as_tensor(W))
    return encoder


def core_influence(
    instance: Instance,
    curvature: ExactHessian | EmpiricalFisher | Identity,
    distance: Distance = "squared",
    encoder: nn.Module | None = None,
) -> np.ndarray:
    """I of every example, (n,), by automatic differentiation in `InfluenceScorer`.

    The curvature is that of all n examples; x̂ = x + εδ.

    Args:
        instance: the instance to score.
        curvature: a curvature of the core.
        distance: as in `Invariance`.
        encoder: scored instead of x ↦ Wx, for example a reparametrised one.
    """
    deltas = torch.as_tensor(instance.deltas)

    def perturbation(x: torch.Tensor, index: torch.Tensor, draw: int, seed: int) -> torch.Tensor:
        return x + instance.eps * deltas[index]

    scorer = InfluenceScorer(
        linear_encoder(instance.W) if encoder is None else encoder,
        objective=Invariance(perturbation, distance=distance),
        curvature=curvature,
        progress=False,
    )
    return scorer.score(torch.as_tensor(instance.x)).values


def core_losses(instance: Instance, distance: Distance = "squared") -> np.ndarray:
    """The core's own loss of each example, (n,)."""
    weight = torch.as_tensor(instance.W)
    return _losses(instance, distance, np.arange(len(instance.x)))(weight).numpy()


def core_derivatives(
    instance: Instance, distance: Distance = "squared"
) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of the core's own loss of each example with respect to W, by autograd.

    Returns:
        gradients (n, k, d), Hessians (n, kd, kd) with vec row-major.
    """
    shape = instance.W.shape
    flat = torch.as_tensor(instance.W).reshape(-1)
    gradients, hessians = [], []
    for i in range(len(instance.x)):
        losses = _losses(instance, distance, np.array([i]))

        def loss(w: torch.Tensor, losses: Callable = losses) -> torch.Tensor:
            return losses(w.reshape(shape))[0]

        gradients.append(torch.func.grad(loss)(flat).reshape(shape).numpy())
        hessians.append(torch.autograd.functional.hessian(loss, flat).numpy())
    return np.array(gradients), np.array(hessians)


def _losses(instance: Instance, distance: Distance, index: np.ndarray) -> Callable:
    x, deltas = torch.as_tensor(instance.x), torch.as_tensor(instance.deltas)
    chosen = torch.as_tensor(index)
    objective = Invariance(lambda x, i, draw, seed: x + instance.eps * deltas[i], distance)

    def of_weight(weight: torch.Tensor) -> torch.Tensor:
        return objective(lambda batch: batch @ weight.T, (x[chosen],), chosen, 0, 0)

    return of_weight


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest |found − expected|/|expected|, entry by entry; |found| where `expected` is 0."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    scale = np.where(expected == 0, 1.0, np.abs(expected))
    return float(np.max(np.abs(found - expected) / scale))
