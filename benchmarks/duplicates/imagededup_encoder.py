"""imagededup: images with similar representations, which it accepts in place of its network's."""

from imagededup.methods import CNN
from imagededup.utils import CustomModel
from torch import nn

PACKAGE = "imagededup"
METHOD = "CNN, trained encoder"
LOOSEST = 0.9
GIVEN = CustomModel("representations given", nn.Identity(), nn.Identity())


def search(paths, z, **settings):
    encodings = {path.name: row for path, row in zip(paths, z, strict=True)}
    return CNN(verbose=False, model_config=GIVEN).find_duplicates(
        encoding_map=encodings, **settings
    )


def find(paths, z):
    place = {path.name: k for k, path in enumerate(paths)}
    found = search(paths, z)
    return [(place[name], place[other]) for name, others in found.items() for other in others]


def rank(paths, z):
    place = {path.name: k for k, path in enumerate(paths)}
    found = search(paths, z, min_similarity_threshold=LOOSEST, scores=True)
    rows = [(place[a], place[b], float(s)) for a, others in found.items() for b, s in others]
    return [(a, b) for a, b, _ in rows], [likeness for *_, likeness in rows]
