"""Captum: the largest eigenvectors of the Hessian, by Arnoldi's iteration."""

import torch
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
from torch.utils.data import TensorDataset

PACKAGE = "captum"
METHOD = "Arnoldi, 10 directions of the Hessian of 64 pairs"


class Pairs(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, y):
        return 1 - torch.cosine_similarity(self.encoder(x), self.encoder(y))


def influence(encoder, train, queries, damping):
    model = Pairs(encoder)
    names = ["encoder." + n for n, m in encoder.named_modules() if isinstance(m, torch.nn.Conv2d)]
    some = [x[:64] for x in train]
    arnoldi = ArnoldiInfluenceFunction(
        model,
        TensorDataset(*train, train[0].new_zeros(len(train[0]))),
        model.state_dict(),
        checkpoints_load_func=lambda model, state: 1.0,
        layers=names,
        loss_fn=lambda loss, _: loss,
        batch_size=1,
        hessian_dataset=TensorDataset(*some, some[0].new_zeros(len(some[0]))),
        hessian_reg=damping,
        projection_dim=10,
        arnoldi_dim=20,
        arnoldi_tol=1e-6,  # the default ends at the first step: these losses curve little
        seed=0,
    )
    return arnoldi.influence((*queries, queries[0].new_zeros(len(queries[0]))))
