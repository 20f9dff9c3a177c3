"""dattri: DataInf, the mean of the inverses of the images' own rank-one Fishers."""

import torch
from dattri.algorithm.influence_function import IFAttributorDataInf
from dattri.task import AttributionTask
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

PACKAGE = "dattri"
METHOD = "DataInf, per layer"


def influence(encoder, train, queries, damping):
    def loss(weights, pair):
        z = functional_call(encoder, weights, (torch.cat(pair),))
        return 1 - torch.cosine_similarity(z[0], z[1], dim=0)

    task = AttributionTask(loss, encoder, encoder.state_dict())
    names = [f"{n}.weight" for n, m in encoder.named_modules() if isinstance(m, torch.nn.Conv2d)]
    datainf = IFAttributorDataInf(task, names, device=str(train[0].device), regularization=damping)
    loaders = [DataLoader(TensorDataset(*pair), batch_size=16) for pair in (train, queries)]
    datainf.cache(loaders[0])
    return datainf.attribute(*loaders).T
