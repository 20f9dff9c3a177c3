"""Kronfluence: EK-FAC."""

from quanda.explainers.wrappers import Kronfluence
from quanda.explainers.wrappers.kronfluence_tasks import ImageClassificationTask

PACKAGE = "kronfluence"


def methods(folder):
    settings = {
        "task_module": ImageClassificationTask(),
        "cache_dir": folder,
        "batch_size": 100,
        "load_from_disk": False,
    }
    return {"EK-FAC": (Kronfluence, settings)}
