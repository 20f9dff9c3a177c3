"""fastdup: connected components of similar images, by its own features."""

import os
import tempfile

os.environ["SENTRY_OPT_OUT"] = "1"  # no report of the run to its makers

import fastdup

PACKAGE = "fastdup"
METHOD = "connected components, its own features"


def run(paths, **settings):
    found = fastdup.create(work_dir=tempfile.mkdtemp(), input_dir=[str(p) for p in paths])
    found.run(overwrite=True, print_summary=False, **settings)
    return found


def find(paths):
    place = {path.name: k for k, path in enumerate(paths)}
    table, _ = run(paths).connected_components()
    if table.empty:
        return []
    places = table["filename"].map(lambda name: place[os.path.basename(name)])
    return [rows.tolist() for _, rows in places.groupby(table["component_id"])]


def rank(paths):
    place = {path.name: k for k, path in enumerate(paths)}
    table = run(paths, threshold=0.5, nearest_neighbors_k=5).similarity()
    ends = table[["filename_from", "filename_to"]].map(lambda name: place[os.path.basename(name)])
    return ends.to_numpy(), table["distance"]
