"""imagededup: images with similar features of its default network."""

from imagededup.methods import CNN

PACKAGE = "imagededup"
METHOD = "CNN, its own MobileNet"
LOOSEST = 0.9


def search(paths, **settings):
    found = CNN(verbose=False).find_duplicates(image_dir=paths[0].parent, **settings)
    return {path: found[path.name] for path in paths}


def find(paths):
    place = {path.name: k for k, path in enumerate(paths)}
    return [(place[a.name], place[b]) for a, others in search(paths).items() for b in others]


def rank(paths):
    place = {path.name: k for k, path in enumerate(paths)}
    found = search(paths, min_similarity_threshold=LOOSEST, scores=True)
    rows = [(place[a.name], place[b], float(s)) for a, others in found.items() for b, s in others]
    return [(a, b) for a, b, _ in rows], [likeness for *_, likeness in rows]
