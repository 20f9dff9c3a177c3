"""imagededup: images with similar hashes; of its four hashes, the best on the first half."""

from imagededup.methods import PHash

PACKAGE = "imagededup"
METHOD = "PHash"
LOOSEST = 20


def find(paths):
    place = {path.name: k for k, path in enumerate(paths)}
    found = PHash(verbose=False).find_duplicates(image_dir=paths[0].parent)
    return [(place[name], place[other]) for name, others in found.items() for other in others]


def rank(paths):
    place = {path.name: k for k, path in enumerate(paths)}
    found = PHash(verbose=False).find_duplicates(
        image_dir=paths[0].parent, max_distance_threshold=LOOSEST, scores=True
    )
    rows = [(place[a], place[b], -bits) for a, others in found.items() for b, bits in others]
    return [(a, b) for a, b, _ in rows], [likeness for *_, likeness in rows]
