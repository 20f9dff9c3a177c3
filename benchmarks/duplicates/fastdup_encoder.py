"""fastdup: connected components of similar images, by given representations."""

import os
import tempfile

os.environ["SENTRY_OPT_OUT"] = "1"  # no report of the run to its makers

import fastdup
import pandas as pd

PACKAGE = "fastdup"
METHOD = "connected components, trained encoder"


def run(paths, z, **settings):
    names = pd.DataFrame({"filename": [str(path) for path in paths]})
    found = fastdup.create(work_dir=tempfile.mkdtemp(), input_dir=str(paths[0].parent))
    found.run(annotations=names, embeddings=z, overwrite=True, print_summary=False, **settings)
    return found


def find(paths, z):
    place = {path.name: k for k, path in enumerate(paths)}
    table, _ = run(paths, z).connected_components()
    if table.empty:
        return []
    places = table["filename"].map(lambda name: place[os.path.basename(name)])
    return [rows.tolist() for _, rows in places.groupby(table["component_id"])]


def rank(paths, z):
    place = {path.name: k for k, path in enumerate(paths)}
    table = run(paths, z, threshold=0.5, nearest_neighbors_k=5).similarity()
    ends = table[["filename_from", "filename_to"]].map(lambda name: place[os.path.basename(name)])
    return ends.to_numpy(), table["distance"]
