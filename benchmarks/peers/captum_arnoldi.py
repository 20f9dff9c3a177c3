"""Captum: the leading eigenvectors of the exact Hessian, by Arnoldi iteration."""

import torch
from captum.influence import ArnoldiInfluenceFunction
from torch.utils.data import TensorDataset

PACKAGE = "captum"
METHOD = "Arnoldi, 10 eigenvectors of the Hessian"


class Pairs(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, y):
        return 1 - torch.cosine_similarity(self.encoder(x), self.encoder(y))


def score(encoder, clean, noisy, damping):
    model = Pairs(encoder)
    names = ["encoder." + n for n, m in encoder.named_modules() if isinstance(m, torch.nn.Conv2d)]
    arnoldi = ArnoldiInfluenceFunction(
        model, TensorDataset(clean, noisy, torch.zeros(len(clean))), "",
        checkpoints_load_func=lambda model, path: 1.0, layers=names,
        loss_fn=lambda loss, _: loss, batch_size=64, arnoldi_dim=20, projection_dim=10,
    )
    return arnoldi.self_influence()
