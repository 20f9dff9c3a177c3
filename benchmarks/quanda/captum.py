"""Captum: cosine similarity, TracIn over all checkpoints, and Arnoldi's iteration."""

from quanda.explainers.wrappers import CaptumArnoldi, CaptumSimilarity, CaptumTracInCP
from torch import nn

PACKAGE = "captum"
BLOCKS = [f"encoder.layer{k}.{i}.conv{j}" for k in (1, 2, 3, 4) for i in (0, 1) for j in (1, 2)]
SHORTCUTS = [f"encoder.layer{k}.0.downsample.0" for k in (2, 3, 4)]
LAYERS = ["encoder.conv1", *BLOCKS, *SHORTCUTS, "fc"]


def methods(folder):
    similarity = {"model_id": "0", "layers": "encoder", "cache_dir": folder, "batch_size": 100}
    tracin = {
        "layers": LAYERS,
        "loss_fn": nn.CrossEntropyLoss(reduction="sum"),
        "sample_wise_grads_per_batch": True,
        "batch_size": 250,
    }
    arnoldi = {
        "layers": LAYERS,
        "precompute_data_ratio": 0.05,
        "projection_dim": 20,
        "arnoldi_dim": 30,
        "arnoldi_tol": 1e-4,
    }
    return {
        "cosine similarity of representations": (CaptumSimilarity, similarity),
        "TracIn, three checkpoints": (CaptumTracInCP, tracin),
        "Arnoldi, 20 directions of the Hessian of 50 images": (CaptumArnoldi, arnoldi),
    }
