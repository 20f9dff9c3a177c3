"""TRAK: one random projection of the whole gradient."""

from quanda.explainers.wrappers import TRAK

PACKAGE = "traker"


def methods(folder):
    settings = {"model_id": "0", "cache_dir": folder, "proj_dim": 512, "batch_size": 200}
    return {"global projection to 512 numbers": (TRAK, settings)}
