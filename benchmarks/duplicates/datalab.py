"""cleanlab's Datalab: near-duplicates and outliers from the representations."""

import numpy as np
from cleanlab import Datalab

PACKAGE = "cleanlab"
METHOD = "Datalab, trained encoder"


def audited(z):
    lab = Datalab({"row": list(range(len(z)))}, verbosity=0)
    lab.find_issues(features=z, issue_types={"near_duplicate": {}, "outlier": {}})
    return lab


def find(paths, z):
    sets = audited(z).get_info("near_duplicate")["near_duplicate_sets"]
    return [(i, j) for i, near in enumerate(sets) for j in near]


def rank(paths, z):
    lab = audited(z)
    graph = lab.get_info("statistics")["weighted_knn_graph"].tocoo()
    unit = lab.get_info("near_duplicate")["median_distance_to_nearest_neighbor"]
    return np.stack([graph.row, graph.col], 1), -graph.data / unit


def strangeness(paths, z):
    return -audited(z).get_issues("outlier")["outlier_score"].to_numpy()
