"""Kronfluence: EK-FAC."""

from quanda.explainers.wrappers import Kronfluence
from quanda.explainers.wrappers.kronfluence_tasks import ImageClassificationTask

PACKAGE = "kronfluence"


def methods(folder):
    # Kronfluence finds its batch of training images by a trial with one whole batch of queries,
    # which must not be larger than their number.
    settings = {
        "task_module": ImageClassificationTask(),
        "cache_dir": folder,
        "batch_size": 50,
        "load_from_disk": False,
    }
    return {"EK-FAC": (Kronfluence, settings)}
