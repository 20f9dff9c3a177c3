"""LogIX, the library that the paper adapted: LoGra with its own random projections."""

import tempfile

import torch
from logix import LogIX
from logix.config import LoRAConfig

PACKAGE = "logix-ai"
METHOD = "LoGra, rank 16, per layer, its own damping rule"


def score(encoder, clean, noisy, damping, rank=16):
    with tempfile.TemporaryDirectory() as folder:
        logix = LogIX(project=folder)
        logix.watch(encoder)
        logix.add_lora(lora_config=LoRAConfig(init="random", rank=rank))
        logix.setup({"grad": ["log", "covariance"]})
        logs = []
        for start in range(0, len(clean), 64):
            x, y = clean[start : start + 64], noisy[start : start + 64]
            with logix(data_id=[str(start + i) for i in range(len(x))]):
                encoder.zero_grad()
                # A layer's two calls are added up; a pair in one batch would be two examples.
                (1 - torch.cosine_similarity(encoder(x), encoder(y))).sum().backward()
            logs.append(logix.get_log(copy=True))
        logix.finalize()
        found = [logix.compute_self_influence(log)["influence"] for log in logs]
    return torch.cat(found)
