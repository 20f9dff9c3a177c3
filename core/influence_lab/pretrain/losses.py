"""The pre-training losses. Each takes the two views' outputs (B, K) and returns a scalar."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def nt_xent(
    a: Float[Tensor, "b k"], b: Float[Tensor, "b k"], temperature: float
) -> Float[Tensor, ""]:
    r"""SimCLR's loss (Chen et al. 2020, Equation 1), the mean over all 2B anchors.

    .. math:: \ell_{ij} = -\log \frac{\exp(s_{ij}/T)}{\sum_{k \ne i} \exp(s_{ik}/T)}

    with :math:`s` the cosine similarities among all 2B rows and :math:`j` the other view of
    :math:`i`.
    """
    z = F.normalize(torch.cat([a, b]), dim=1)
    n = len(a)
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, float("-inf"))
    other = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(logits, other)


def byol_regression(
    prediction: Float[Tensor, "b k"], target: Float[Tensor, "b k"]
) -> Float[Tensor, ""]:
    r"""BYOL's loss (Grill et al. 2020, Equation 2): the mean of :math:`2 - 2\cos(p_i, z_i)`."""
    return (2 - 2 * F.cosine_similarity(prediction, target, dim=1)).mean()


def barlow_twins(
    a: Float[Tensor, "b k"], b: Float[Tensor, "b k"], off_diagonal: float
) -> Float[Tensor, ""]:
    r"""Barlow Twins' loss (Zbontar et al. 2021, Equations 1 and 2).

    .. math:: \sum_i (1 - C_{ii})^2 + \lambda \sum_i \sum_{j \ne i} C_{ij}^2

    with :math:`C` the correlation matrix of the two views' outputs over the batch; ``off_diagonal``
    is :math:`\lambda`. A column that does not vary has no correlation and gives NaN.
    """
    a = (a - a.mean(0)) / a.std(0, correction=0)
    b = (b - b.mean(0)) / b.std(0, correction=0)
    correlation = a.T @ b / len(a)
    squares = correlation.square()
    diagonal = correlation.diagonal()
    return (1 - diagonal).square().sum() + off_diagonal * (squares.sum() - diagonal.square().sum())
