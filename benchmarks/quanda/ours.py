"""This library's influence as an explainer of quanda, with labels and without."""

import torch
from quanda.explainers import Explainer
from torch.utils.data import TensorDataset

from influence_ssl import InfluenceScorer, Invariance, Supervised

PACKAGE = "influence-ssl"


class Influence(Explainer):
    accepted_tasks = ("image_classification",)

    def __init__(self, model, train_dataset, part="", checkpoints=None, **settings):
        super().__init__(model, train_dataset, checkpoints=checkpoints)
        self.scorer = InfluenceScorer(model.get_submodule(part), progress=False, **settings)
        self.scorer.fit(train_dataset, keep=True)

    def explain(self, test_data, targets):
        queries = TensorDataset(test_data, torch.as_tensor(targets))
        return -torch.from_numpy(self.scorer.influence(queries).values)

    def self_influence(self, batch_size=1):
        return torch.from_numpy(self.scorer.score(self.train_dataset).magnitude)


def methods(folder):
    return {
        "cross-entropy": (Influence, {"objective": Supervised()}),
        "invariance, no labels": (
            Influence,
            {"part": "encoder", "objective": Invariance(), "draws": 4},
        ),
    }
