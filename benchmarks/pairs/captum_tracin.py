"""Captum: TracIn, the product of two gradients."""

import torch
from captum.influence import TracInCP
from torch.utils.data import TensorDataset

PACKAGE = "captum"
METHOD = "TracIn, no curvature (product of gradients)"


class Pairs(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, y):
        return 1 - torch.cosine_similarity(self.encoder(x), self.encoder(y))


def influence(encoder, train, queries, damping):
    model = Pairs(encoder)
    names = ["encoder." + n for n, m in encoder.named_modules() if isinstance(m, torch.nn.Conv2d)]
    tracin = TracInCP(
        model,
        TensorDataset(*train, train[0].new_zeros(len(train[0]))),
        [model.state_dict()],
        checkpoints_load_func=lambda model, state: 1.0,
        layers=names,
        loss_fn=lambda loss, _: loss,
        batch_size=1,  # each example is a backward pass through its whole batch
    )
    return tracin.influence((*queries, queries[0].new_zeros(len(queries[0]))))
