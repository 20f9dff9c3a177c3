"""LogIX, the library that the paper adapted: LoGra with its own random projections."""

import tempfile

import torch
from logix import LogIX
from logix.config import LoRAConfig

PACKAGE = "logix-ai"
METHOD = "LoGra, rank 16, per layer, its own damping rule"


def influence(encoder, train, queries, damping, batch=64):
    with tempfile.TemporaryDirectory() as folder:
        logix = LogIX(project=folder)
        logix.watch(encoder)
        logix.add_lora(lora_config=LoRAConfig(init="random", rank=16))

        def logs(clean, noisy):
            found = []
            for x, y in zip(clean.split(batch), noisy.split(batch), strict=True):
                with logix(data_id=[str(i) for i in range(len(x))]):
                    encoder.zero_grad()
                    # A layer's two calls are added up; a pair in one batch would be two examples.
                    (1 - torch.cosine_similarity(encoder(x), encoder(y))).sum().backward()
                found.append(logix.get_log(copy=True))
            return found

        logix.setup({"grad": ["log", "covariance"]})
        sources = logs(*train)
        logix.finalize()
        logix.setup({"grad": ["log"]})
        logix.eval()
        rows = [
            torch.cat([logix.compute_influence(log, source)["influence"] for source in sources], 1)
            for log in logs(*queries)
        ]
    return torch.cat(rows)
