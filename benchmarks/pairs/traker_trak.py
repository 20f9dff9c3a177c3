"""TRAK: one random projection of the whole gradient."""

import logging
import tempfile

import torch
from torch.func import functional_call
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput

PACKAGE = "traker"
METHOD = "global projection to 512 numbers"


class Pairs(AbstractModelOutput):
    def __init__(self):
        pass

    @staticmethod
    def get_output(model, weights, buffers, x, y):
        z = functional_call(model, (weights, buffers), (torch.stack([x, y]),))
        return 1 - torch.cosine_similarity(z[0], z[1], dim=0)

    def get_out_to_loss_grad(self, model, weights, buffers, batch):
        return torch.ones(len(batch[0]), 1, device=batch[0].device)


def influence(encoder, train, queries, damping, batch=64):
    n = len(train[0])
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            encoder,
            Pairs(),
            train_set_size=n,
            save_dir=folder,
            device=str(train[0].device),
            proj_dim=512,
            use_half_precision=False,
            lambda_reg=n * damping,
            logging_level=logging.ERROR,
        )
        batches, asked = (
            list(zip(*(x.split(batch) for x in pair), strict=True)) for pair in (train, queries)
        )
        traker.load_checkpoint(encoder.state_dict(), model_id=0)
        for batch in batches:
            traker.featurize(batch, num_samples=len(batch[0]))
        traker.finalize_features()
        traker.start_scoring_checkpoint("queries", encoder.state_dict(), 0, len(queries[0]))
        for batch in asked:
            traker.score(batch, num_samples=len(batch[0]))
        return torch.from_numpy(traker.finalize_scores("queries").astype("float64")).T
