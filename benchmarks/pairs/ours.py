"""This library's default."""

import torch

from influence_ssl import InfluenceScorer, Invariance, LoGra

PACKAGE = "influence-ssl"
METHOD = "LoGra, rank 16, per layer"


def influence(encoder, train, queries, damping, batch=64):
    noisy = torch.cat([train[1], queries[1]])
    objective = Invariance(lambda x, index, draw, seed: noisy[index].to(x.dtype))
    scorer = InfluenceScorer(encoder, objective, LoGra(16), batch_size=batch, progress=False)
    found = scorer.fit(train[0], keep=True).influence(queries[0])
    return -torch.from_numpy(found.values)
