"""This library in bfloat16."""

import torch

from influence_ssl import InfluenceScorer, Invariance, LoGra

PACKAGE = "influence-ssl"
METHOD = "LoGra, rank 16, per layer, bfloat16"


def score(encoder, clean, noisy, damping):
    objective = Invariance(lambda x, index, draw, seed: noisy[index].to(x.dtype))
    settings = {"batch_size": 64, "progress": False, "dtype": torch.bfloat16}
    scorer = InfluenceScorer(encoder, objective, LoGra(16), **settings)
    return torch.from_numpy(scorer.score(clean).magnitude)
