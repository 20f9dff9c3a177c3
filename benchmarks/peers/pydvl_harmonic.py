"""pyDVL: the inverse of each gradient's own curvature, averaged."""

import torch
from pydvl.influence.torch import InverseHarmonicMeanInfluence
from torch.utils.data import DataLoader, TensorDataset

PACKAGE = "pyDVL"
METHOD = "inverse harmonic mean, over all layers"


class Pairs(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pair):
        z, z_hat = self.encoder(pair.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        return 1 - torch.cosine_similarity(z, z_hat)


def score(encoder, clean, noisy, damping):
    for parameter in encoder.parameters():
        parameter.requires_grad_(parameter.ndim > 1)
    pairs = torch.stack([clean, noisy], 1)
    batches = DataLoader(TensorDataset(pairs, torch.zeros(len(pairs))), batch_size=16)
    influence = InverseHarmonicMeanInfluence(
        Pairs(encoder), lambda loss, _: loss.mean(), regularization=damping
    ).fit(batches)
    return torch.cat([influence.influences(x, y).diagonal() for x, y in batches])
