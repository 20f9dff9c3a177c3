"""This library's groups and distances, as `influence-ssl check` has them."""

import torch

from influence_ssl.analysis.duplicates import LIMITS, Search
from influence_ssl.analysis.offtopic import distances
from influence_ssl.encoders.builtin import from_package
from influence_ssl.files.images import ImageFiles

PACKAGE = "influence-ssl"
METHOD = "duplicate groups, trained encoder"
THRESHOLDS = (0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)


def images(paths):
    _, preprocess = from_package("builtin:cifar-simclr")
    return ImageFiles(paths[0].parent, preprocess).readable()


def searched(paths, z):
    return Search(torch.from_numpy(z), images(paths))


def find(paths, z):
    return [group.members for group in searched(paths, z).groups()]


def rank(paths, z):
    search, likeness = searched(paths, z), {}
    for threshold in THRESHOLDS:
        for group in search.groups(LIMITS._replace(pixels=threshold)):
            for i in group.members:
                likeness |= {(i, j): threshold for j in group.members if i < j}
    return list(likeness), list(likeness.values())


def strangeness(paths, z):
    return distances(torch.from_numpy(z)).mahalanobis
