"""Captum: TracIn, the squared gradient norm."""

import torch
from captum.influence import TracInCP
from torch.utils.data import TensorDataset

PACKAGE = "captum"
METHOD = "TracIn, no curvature (squared gradient norm)"


class Pairs(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, y):
        return 1 - torch.cosine_similarity(self.encoder(x), self.encoder(y))


def score(encoder, clean, noisy, damping):
    model = Pairs(encoder)
    names = ["encoder." + n for n, m in encoder.named_modules() if isinstance(m, torch.nn.Conv2d)]
    tracin = TracInCP(
        model,
        TensorDataset(clean, noisy, torch.zeros(len(clean))),
        [model.state_dict()],
        checkpoints_load_func=lambda model, state: 1.0,
        layers=names,
        loss_fn=lambda loss, _: loss,
        batch_size=1,  # each example is a backward pass through its whole batch
    )
    return tracin.self_influence()
