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
        return torch.ones(len(batch[0]), 1)


def score(encoder, clean, noisy, damping):
    n = len(clean)
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            encoder,
            Pairs(),
            train_set_size=n,
            save_dir=folder,
            device="cpu",
            proj_dim=512,
            use_half_precision=False,
            lambda_reg=n * damping,
            logging_level=logging.ERROR,
        )
        batches = list(zip(clean.split(64), noisy.split(64), strict=True))
        traker.load_checkpoint(encoder.state_dict(), model_id=0)
        for batch in batches:
            traker.featurize(batch, num_samples=len(batch[0]))
        traker.finalize_features()
        store = traker.saver.current_store
        grads, features = (torch.as_tensor(store[name]).clone() for name in ("grads", "features"))
    return n * (grads * features).sum(1)
