"""Captum: cosine similarity, TracIn over all checkpoints, and Arnoldi's iteration."""

from quanda.explainers.wrappers import CaptumArnoldi, CaptumSimilarity, CaptumTracInCP
from torch import nn

PACKAGE = "captum"
BLOCKS = [f"encoder.layer{k}.{i}.conv{j}" for k in (1, 2, 3, 4) for i in (0, 1) for j in (1, 2)]
SHORTCUTS = [f"encoder.layer{k}.0.downsample.0" for k in (2, 3, 4)]
LAYERS = ["encoder.conv1", *BLOCKS, *SHORTCUTS, "fc"]


def methods(folder):
    similarity = {"model_id": "0", "layers": "encoder", "cache_dir": folder, "batch_size": 100}
    # Otherwise captum takes the gradients of a batch image by image, each through the graph of the
    # whole batch; its default, batches of one image, makes the Hessian's products slow.
    batches = {
        "layers": LAYERS,
        "loss_fn": nn.CrossEntropyLoss(reduction="sum"),
        "sample_wise_grads_per_batch": True,
        "batch_size": 250,
    }
    arnoldi = {
        "precompute_data_ratio": 0.1,
        "projection_dim": 50,
        "arnoldi_dim": 80,
        "arnoldi_tol": 1e-4,
    }
    return {
        "cosine similarity of representations": (CaptumSimilarity, similarity),
        "TracIn, three checkpoints": (CaptumTracInCP, batches),
        "Arnoldi, 50 directions of the Hessian of a tenth of the images": (
            CaptumArnoldi,
            {**batches, **arnoldi},
        ),
    }
