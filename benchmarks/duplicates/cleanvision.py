"""cleanvision: images with equal pixels or an equal perceptual hash, and its other issues."""

from itertools import combinations

from cleanvision import Imagelab

PACKAGE = "cleanvision"
METHOD = "all issues; equal pixels or perceptual hash"
SIZES = (4, 8, 16)
SAME = {"light": "bright", "odd_aspect_ratio": "odd aspect", "grayscale": "grey"}


def sets(lab, paths):
    place = {str(path): k for k, path in enumerate(paths)}
    return [
        [place[name] for name in names]
        for kind in ("exact_duplicates", "near_duplicates")
        for names in lab.info[kind]["sets"]
    ]


def find(paths):
    lab = Imagelab(filepaths=[str(path) for path in paths])
    lab.find_issues(verbose=False)
    return sets(lab, paths)


def rank(paths):
    likeness = {}
    for size in SIZES:
        lab = Imagelab(filepaths=[str(path) for path in paths])
        issues = {"exact_duplicates": {}, "near_duplicates": {"hash_size": size}}
        lab.find_issues(issues, verbose=False)
        for group in sets(lab, paths):
            likeness |= dict.fromkeys(combinations(sorted(group), 2), size)
    return list(likeness), list(likeness.values())


def flagged(paths):
    lab = Imagelab(filepaths=[str(path) for path in paths])
    lab.find_issues(verbose=False)
    place = {str(path): k for k, path in enumerate(paths)}
    names = [name for name in lab.issues if name.startswith("is_") and "duplicates" not in name]
    kinds = {name: name.removeprefix("is_").removesuffix("_issue") for name in names}
    return {
        SAME.get(kind, kind.replace("_", " ")): [
            place[path] for path in lab.issues.index[lab.issues[name]]
        ]
        for name, kind in kinds.items()
    }
