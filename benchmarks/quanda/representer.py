"""quanda's own representer points."""

from quanda.explainers.wrappers import RepresenterPoints

PACKAGE = "quanda"


def methods(folder):
    settings = {
        "model_id": "0",
        "features_layer": "encoder",
        "classifier_layer": "fc",
        "cache_dir": folder,
        "batch_size": 100,
        "show_progress": False,
    }
    return {"representer points": (RepresenterPoints, settings)}
