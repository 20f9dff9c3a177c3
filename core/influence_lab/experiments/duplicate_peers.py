"""Other libraries at the planted benchmark: copies found, look-alikes left alone, time and size.

A peer is a script under ``benchmarks/duplicates`` that defines ``PACKAGE``, ``METHOD`` and

- ``find(paths)``: groups of positions in ``paths`` (the files of one folder, sorted by name) that
  the library calls copies of one another at its defaults;
- ``rank(paths)``: pairs of positions and how alike the library finds each pair;
- where it can, ``flagged(paths)``: kind → positions of the images that look faulty, and
  ``strangeness(paths)``: a number for each image, larger for an image unlike the others.

Where the second parameter is ``z``, the functions are given the images' representations by the
packaged encoder, which all peers share. A script holds nothing that a user of the library would not
write, and runs in an environment of its own:

    python -m influence_lab.experiments.duplicate_peers benchmarks/duplicates/datalab.py OUT.json

The sets are those of :mod:`influence_lab.experiments.planted`, written as files once. For each of
:data:`KINDS`, the threshold with the largest F1 is chosen on the first half. The reported numbers
are those of the second half, at the library's defaults and at this threshold. Processor time
includes child processes. A set on which a library fails is recorded with the error.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import resource
import runpy
import shutil
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from PIL import Image

from influence_lab.datasets import load
from influence_lab.datasets.lookalikes import SETS, photographs, tiles
from influence_lab.experiments.pairwise import limited
from influence_lab.experiments.peers import lines, words_of
from influence_lab.experiments.planted import COUNT, Pictures, Truth, encoders, halves, with_foreign
from influence_lab.measures import copies
from influence_lab.measures.agreement import Estimate, rounded
from influence_lab.measures.copies import Ranking
from influence_lab.measures.detection import auroc
from influence_lab.records import results
from influence_ssl.analysis.flags import FLAGS, flags
from influence_ssl.encoders.builtin import NAME, PREFIX, from_package
from influence_ssl.errors import InfluenceError
from influence_ssl.files.images import ImageFiles

SCRIPTS = (
    "ours", "selfclean", "datalab", "fastdup", "fastdup_encoder", "cleanvision",
    "imagededup_phash", "imagededup_encoder", "imagededup_cnn",
)  # fmt: skip
TURNED = ("mirror", "quarter turn", "half turn", "three quarters", "exif")
"""Kinds of copies whose pixels lie elsewhere; :data:`PLANTED` sets hold the others as well."""
PLANTED = ("cifar10", "photographs")
KINDS = {"cifar10": ("cifar10",), "pictures": ("photographs", *SETS)}
"""The sets for which one threshold is chosen: images of 32 pixels, and pictures and look-alikes."""
SECONDS = 300
"""The most processor time that a call may take."""
_BUNDLED = ("pip", "setuptools")
_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp"}


class Part(NamedTuple):
    """The files of one set, their representations and the kinds of the planted pairs."""

    paths: list[Path]
    z: Float32[np.ndarray, "n d"]
    truth: Truth


class Data(NamedTuple):
    """Both halves by set, pictures of which some are foreign, and how the data were made.

    ``seconds``: processor time of the representations of the second half of CIFAR-10.
    """

    halves: list[dict[str, Part]]
    foreign: Part
    wanted: list[int]
    seconds: float
    name: str
    digest: str


def recorded(root: Path | None = None) -> dict[str, dict[str, Any] | None]:
    """The record of each script by its name, ``None`` where there is none yet."""
    return {name: results.load_record("cpu", f"duplicates/{name}", root) for name in SCRIPTS}


def quality_rows(records: dict[str, dict[str, Any] | None], when: str) -> Iterator[dict[str, str]]:
    """One line of a table per script: precision and recall at the ``"default"`` or ``"chosen"``
    threshold, and how many pictures without a copy are in a group among look-alikes."""
    for one, head in _heads(records):
        if one is None or one["error"]:
            yield head
            continue
        row = dict(head)
        for name, words in zip(PLANTED, ("CIFAR-10", "photographs"), strict=True):
            found = one["sets"].get(name, {}).get(when, {})
            for what in ("precision", "recall", "recall upright"):
                row[f"{words} {what}"] = _shown(found.get(what))
        alike = [one["sets"][name] for name in SETS if name in one["sets"]]
        grouped = sum(found[when]["images in false groups"] for found in alike)
        row["look-alikes grouped"] = f"{grouped} of {sum(found['images'] for found in alike)}"
        failed = [name for name in SETS if name in one["errors"]]
        row["look-alikes grouped"] += f", fails on {' and '.join(failed)}" if failed else ""
        yield row


def cost_rows(records: dict[str, dict[str, Any] | None]) -> Iterator[dict[str, str]]:
    """One line of a table per script: AUROC, processor and wall-clock seconds for the second half
    of CIFAR-10, megabytes of what it installs, and the lines of the script."""
    for one, head in _heads(records):
        if one is None or one["error"]:
            yield head
            continue
        seconds = one["cpu"] + (one["represent"] if one["represented"] else 0)
        yield head | {
            "AUROC, copies": _shown(one["sets"].get("cifar10", {}).get("auroc")),
            "AUROC, foreign": _shown(one.get("foreign")),
            "seconds": f"{seconds:.1f}",
            "of them its own": f"{one['cpu']:.1f}",
            "wall": f"{one['wall']:.1f}",
            "MB": "" if one["megabytes"] is None else f"{one['megabytes']:.0f}",
            "lines": str(one["lines"]),
        }


def _heads(
    records: dict[str, dict[str, Any] | None],
) -> Iterator[tuple[dict[str, Any] | None, dict[str, str]]]:
    for name, one in records.items():
        if one is None:
            yield None, {"library": name, "note": "not recorded yet"}
        elif one["error"]:
            yield (
                one,
                {
                    "library": f"{one['package'] or name}, {one.get('method', '')}",
                    "note": one["error"],
                },
            )
        else:
            yield one, {"library": f"{one['package']} {one['version']}, {one['method']}"}


def _shown(numbers: list[float] | None) -> str:
    return "" if numbers is None else str(Estimate(*numbers))


def write(folder: Path, count: int = COUNT, seed: int = 0) -> None:
    """Write all sets as files into ``folder``, which must be new, and their truth beside them."""
    test, net = load("cifar10", "test"), encoders(seed)["trained"]
    photos = [tile for photo in photographs().values() for tile in tiles(photo)]
    facts: dict[str, Any] = {
        "name": f"{test.name} test ({count:,} images), {len(photos)} tiles of "
        f"{len(photographs())} photographs, {len(SETS)} drawn sets of look-alikes",
        "digest": test.digest,
        "halves": [],
    }
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was stopped
    temporary.mkdir(parents=True)

    def keep(place: str, pictures: Pictures) -> float:
        (temporary / place).mkdir(parents=True)
        for k, file in enumerate(pictures.files):
            with Image.open(pictures.stream(k)) as image:
                suffix = _EXTENSIONS[str(image.format)]
            (temporary / place / f"{k:05}.{suffix}").write_bytes(file)
        begin = time.process_time()
        z = pictures.represent(net).numpy()
        np.save(temporary / f"{place}.npy", z)
        return time.process_time() - begin

    for half, sets in enumerate(halves(test.images, photos, count, seed)):
        seconds = {name: keep(f"{half}/{name}", found) for name, (found, _) in sets.items()}
        facts["seconds"] = round(seconds["cifar10"], 1)
        facts["halves"].append(
            {
                name: [[i, j, kind] for (i, j), kind in truth.items()]
                for name, (_, truth) in sets.items()
            }
        )
    pictures, wanted = with_foreign(test.images, seed)
    keep("foreign", pictures)
    facts["wanted"] = np.flatnonzero(wanted).tolist()
    (temporary / "planted.json").write_text(json.dumps(facts), encoding="utf-8")
    temporary.rename(folder)


def read(folder: Path) -> Data:
    """The data that :func:`write` wrote."""
    facts = json.loads((folder / "planted.json").read_text(encoding="utf-8"))

    def part(place: str, truth: list[Any]) -> Part:
        paths = sorted((folder / place).iterdir())
        return Part(paths, np.load(folder / f"{place}.npy"), {(i, j): k for i, j, k in truth})

    return Data(
        [
            {name: part(f"{half}/{name}", truth) for name, truth in sets.items()}
            for half, sets in enumerate(facts["halves"])
        ],
        part("foreign", []), facts["wanted"], facts["seconds"], facts["name"], facts["digest"],
    )  # fmt: skip


def run(path: Path, data: Data) -> dict[str, Any]:
    """The record of one script."""
    record: dict[str, Any] = {"lines": lines(path), "package": "", "version": None, "error": None}
    try:
        script = runpy.run_path(str(path))
    except Exception as error:  # a library that cannot be imported is a finding
        return record | {"error": words_of(error)}
    record |= {"package": script["PACKAGE"], "method": script["METHOD"]}
    record |= {"version": version(script["PACKAGE"]), "megabytes": added_megabytes()}
    record["represented"] = "z" in inspect.signature(script["find"]).parameters
    record["errors"] = {}
    try:
        # What is loaded once is loaded before the clock starts.
        groups = {"photographs": _call(script["find"], data.halves[1]["photographs"])}
        wall, cpu = time.perf_counter(), _processor_time()
        groups["cifar10"] = _call(script["find"], data.halves[1]["cifar10"])
        record["wall"] = round(time.perf_counter() - wall, 2)
        record["cpu"] = round(_processor_time() - cpu, 2)
    except InfluenceError:  # no finding about the library
        raise
    except Exception as error:  # whatever a foreign library raises is the finding
        return record | {"error": words_of(error)}
    ranked: list[dict[str, Ranking]] = [{}, {}]
    found: dict[str, set[tuple[int, int]]] = {}
    for half, sets in enumerate(data.halves):
        for name, part in sets.items():
            try:
                ends, likeness = _call(script["rank"], part)
                ranked[half][name] = Ranking(
                    np.array(ends, np.int64).reshape(-1, 2), np.array(likeness, np.float64)
                )
                if half:
                    own = groups[name] if name in groups else _call(script["find"], part)
                    found[name] = copies.pairs(own)
            except Exception as error:  # one set of tiny images must not hide the others
                record["errors"][name] = words_of(error)
    thresholds = {
        kind: copies.best_threshold(
            (ranked[0][name], data.halves[0][name].truth.keys()) for name in names if name in found
        )
        for kind, names in KINDS.items()
    }
    record["thresholds"] = {
        kind: float(value) if np.isfinite(value) else None for kind, value in thresholds.items()
    }
    record["sets"] = {
        name: _measured(data.halves[1][name], ranked[1][name], found[name], thresholds[kind])
        for kind, names in KINDS.items()
        for name in names
        if name in found
    }
    foreign = data.foreign
    if "strangeness" in script:
        values = np.asarray(_call(script["strangeness"], foreign), np.float64)
        wanted = np.isin(np.arange(len(values)), data.wanted)
        record["foreign"] = _numbers(auroc(values[wanted], values[~wanted]))
    if "flagged" in script:
        record["flags"] = _flags(script["flagged"], data)
    return record


def _call(function: Callable[..., Any], part: Part) -> Any:
    named = {"z": part.z} if "z" in inspect.signature(function).parameters else {}
    # Progress bars would bury the one line that counts.
    with limited(SECONDS), open(os.devnull, "w") as sink, redirect_stdout(sink):  # noqa: SIM117
        with redirect_stderr(sink):
            return function(list(part.paths), **named)


def _measured(
    part: Part, ranking: Ranking, found: set[tuple[int, int]], threshold: float
) -> dict[str, Any]:
    record: dict[str, Any] = {"images": len(part.paths), "copies": len(part.truth)}
    # Of the photographs nearly every one has a copy.
    if part.truth and len(part.paths) - 2 * len(part.truth) >= 100:
        record["auroc"] = _numbers(copies.image_auroc(ranking, len(part.paths), part.truth))
    for name, own in (("default", found), ("chosen", ranking.above(threshold))):
        false = own - part.truth.keys()
        record[name] = {
            "pairs": len(own),
            "false groups": copies.groups(false),
            "images in false groups": len({end for pair in false for end in pair}),
        }
        if part.truth:
            upright = {pair for pair, kind in part.truth.items() if kind not in TURNED}
            wanted = Counter(part.truth.values())
            hits = Counter(part.truth[pair] for pair in own & part.truth.keys())
            record[name] |= {
                "precision": _numbers(copies.precision(own, part.truth)),
                "recall": _numbers(copies.recall(own, part.truth)),
                "recall upright": _numbers(copies.recall(own, upright)),
                "recall by kind": {kind: round(hits[kind] / n, 3) for kind, n in wanted.items()},
            }
    return record


def _numbers(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else rounded({"": estimate})[""]


def _flags(flagged: Callable[..., Any], data: Data) -> dict[str, list[int]]:
    """Kind of fault → images flagged by both, by this library alone and by the script alone.

    They are counted over all sets of the second half, each with its own medians.
    """
    counts = {name: np.zeros(3, np.int64) for name in FLAGS}
    packaged = from_package(PREFIX + NAME)
    assert packaged is not None
    preprocess = packaged[1]
    for part in data.halves[1].values():
        # The preprocessing accepts pictures of several sizes, and nothing else of it is used.
        own = flags(ImageFiles(part.paths[0].parent, preprocess).readable().looks)
        found = _call(flagged, part)
        for name in FLAGS:
            ours = {k for k, kinds in enumerate(own) if name in kinds}
            theirs = {int(k) for k in found.get(name, ())}
            counts[name] += len(ours & theirs), len(ours - theirs), len(theirs - ours)
    return {name: number.tolist() for name, number in counts.items()}


def _processor_time() -> float:
    """Of this process and its children that have ended, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def added_megabytes() -> float | None:
    """The files of the packages installed into this environment beside those of the project.

    Compiled files are left out, which some installers make and others leave to the first import.
    ``None`` in an environment that is the project's own.
    """
    site = Path(sysconfig.get_path("purelib"))
    if not (site / "main.pth").is_file():
        return None
    total = 0
    for package in distributions(path=[str(site)]):
        if package.name.lower() in _BUNDLED:
            continue
        files = (Path(str(package.locate_file(file))) for file in package.files or [])
        total += sum(f.stat().st_size for f in files if f.is_file() and f.suffix != ".pyc")
    return round(total / 1e6, 1)


def main() -> None:
    """Measure one script and write its record; the data are written once."""
    parser = argparse.ArgumentParser(description="Measure one peer at planted duplicates.")
    parser.add_argument("script", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, required=True, help="a folder for the files")
    options = parser.parse_args()
    if options.script is None:
        write(options.data)
        return
    if options.out is None:
        parser.error("name the record's file")
    begin, name = time.perf_counter(), options.out.stem
    data = read(options.data)
    record = run(options.script, data)
    record["represent"] = data.seconds
    record["provenance"] = results.provenance(
        f"make bench (duplicates/{name})", "cpu", 0, data.name, data.digest,
        results.device_name("cpu"), time.perf_counter() - begin,
    )  # fmt: skip
    results.save_json(options.out, record)
    print(f"{name}: {record['error'] or record['cpu']}", file=sys.stderr)


if __name__ == "__main__":
    main()
