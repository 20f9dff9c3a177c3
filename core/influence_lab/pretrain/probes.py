"""Quality of a representation: weighted nearest neighbours and a linear classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from influence_lab.pretrain.resnets import CifarResNet18, normalise
from influence_ssl.errors import InfluenceValueError


@torch.no_grad()
def extract(
    encoder: nn.Module, images: Tensor, batch_size: int = 1000, bf16: bool = False
) -> Float[Tensor, "n d"]:
    """Representations, in eval mode, of uint8 images (N, 3, H, W); float32, on the CPU.

    For a :class:`CifarResNet18` with a classifier, these are the classifier's inputs.
    """
    device = next(encoder.parameters()).device
    forward = encoder.features if isinstance(encoder, CifarResNet18) else encoder
    training = encoder.training
    encoder.eval()
    try:
        parts = []
        for batch in images.split(batch_size):
            x = normalise(batch.to(device)).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                parts.append(forward(x).float().cpu())
    finally:
        encoder.train(training)
    return torch.cat(parts)


def knn_predict(
    bank: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    k: int = 200,
    temperature: float = 0.1,
    chunk: int = 1000,
) -> Int64[Tensor, " m"]:
    r"""The class with the largest sum of :math:`\exp(\cos / T)` over the k nearest by cosine.

    Weighted kNN as in Wu et al. (2018); k = 200 and T = 0.1 are solo-learn's. ``k`` is at most
    the size of the bank. Cost: m n d multiplications.
    """
    if len(bank) != len(labels):
        raise InfluenceValueError(
            f"labels: {len(labels)} for {len(bank)} representations; pass one each"
        )
    bank = F.normalize(bank, dim=1)
    classes = int(labels.max()) + 1
    predictions = []
    for part in F.normalize(queries, dim=1).split(chunk):
        similarity, index = (part @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(part), classes, dtype=bank.dtype)
        votes.scatter_add_(1, labels[index], (similarity / temperature).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def knn_accuracy(
    bank: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    truth: Int64[Tensor, " m"],
    k: int = 200,
    temperature: float = 0.1,
) -> float:
    """The share of ``queries`` that :func:`knn_predict` gives the class ``truth``."""
    return float((knn_predict(bank, labels, queries, k, temperature) == truth).double().mean())


def linear_accuracy(
    bank: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    queries: Float[Tensor, "m d"],
    truth: Int64[Tensor, " m"],
    decay: float = 1e-4,
    iterations: int = 100,
) -> float:
    """The accuracy on ``queries`` of multinomial logistic regression fitted on ``bank``.

    Features are standardised with the bank's mean and deviation. The convex problem (mean
    cross-entropy + ``decay``/2 |w|²) is solved with L-BFGS from zero, so the result depends on no
    seed or rate.
    """
    mean, std = bank.mean(0), bank.std(0).clamp_min(1e-12)
    bank, queries = (bank - mean) / std, (queries - mean) / std
    classes = int(labels.max()) + 1
    weight = torch.zeros(classes, bank.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(bank @ weight.T + bias, labels) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        return float(((queries @ weight.T + bias).argmax(1) == truth).double().mean())
