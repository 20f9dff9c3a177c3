"""dattri: LoGra."""

import torch
from dattri.algorithm.logra import LoGraAttributor
from dattri.task import AttributionTask
from torch.utils.data import DataLoader, TensorDataset

PACKAGE = "dattri"
METHOD = "LoGra, rank 16, per layer"


class Batched(torch.nn.Module):
    """dattri first calls the network on an image without a batch axis."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        return self.encoder(x if x.ndim == 4 else x[None])


def influence(encoder, train, queries, damping):
    def loss(model, batch, device):
        return (1 - torch.cosine_similarity(model(batch[0]), model(batch[1]))).sum()

    model = Batched(encoder)
    task = AttributionTask(loss, model, model.state_dict())
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    logra = LoGraAttributor(task, names, damping=damping, proj_dim=256)
    loaders = [DataLoader(TensorDataset(*pair), batch_size=64) for pair in (train, queries)]
    logra.cache(loaders[0])
    return logra.attribute(*loaders).T
