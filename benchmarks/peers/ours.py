"""This library's default."""

import torch

from influence_ssl import InfluenceScorer, Invariance, LoGra

PACKAGE = "influence-ssl"
METHOD = "LoGra, rank 16, per layer"


def score(encoder, clean, noisy, damping):
    objective = Invariance(lambda x, index, draw, seed: noisy[index].to(x.dtype))
    settings = {"batch_size": 64, "progress": False}
    scorer = InfluenceScorer(encoder, objective, LoGra(16), **settings)
    return torch.from_numpy(scorer.score(clean).magnitude)
