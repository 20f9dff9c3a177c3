"""Other methods of attribution, judged by the metrics of quanda: a classifier and its images.

A script under ``benchmarks/quanda`` defines ``PACKAGE`` and ``methods(folder)``, which returns by
name the class of an explainer and its settings; ``folder`` is for what a library keeps on disk. It
holds nothing that a user of quanda would not write, and runs in an environment of its own:

    python -m influence_lab.experiments.explainers benchmarks/quanda/captum.py OUT.json --data DATA

The recorded SimCLR encoder with a linear layer is fine-tuned on labelled images, once with their
labels and once with wrong labels planted, and checkpoints are kept. The metrics are quanda's. They
judge a method's explanations of the predicted classes of test images, with the right labels, and
its self-influence, with the wrong ones. quanda breaks ties in the self-influence by adding 1e-4
times an image's position, which would overrule methods whose values are small, so that the metric
is given ranks. A method that fails is recorded with its error.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import runpy
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from influence_lab.experiments.encoder import encoder_of
from influence_lab.experiments.pairwise import limited
from influence_lab.experiments.peers import lines, words_of
from influence_lab.experiments.task import Task
from influence_lab.measures.agreement import Estimate, mean, rounded
from influence_lab.pretrain.resnets import cifar_resnet18, normalise
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_ssl.errors import InfluenceError

SCRIPTS = ("ours", "captum", "traker", "representer", "kronfluence", "chance")
METRICS = ("class", "cardinality", "randomised", "mislabelled")
"""Class detection, top-k cardinality, model randomisation and mislabelling detection."""
SIZES = {"cpu": (1000, 50, 100), "tiny": (400, 50, 40)}
"""Training images, queries and wrong labels."""
TOP = 10
EPOCHS = {"cpu": 18, "tiny": 30}
"""Multiples of :data:`KEPT`, so that the last checkpoint is the end."""
KEPT, BATCH, RATE = 3, 64, 0.05
SECONDS = 600
"""The most processor time that a method may take."""

Method = Callable[[str], tuple[type, dict[str, Any]]]


class Trained(NamedTuple):
    """A classifier in eval mode, its labelled images and the files of its checkpoints."""

    model: nn.Module
    train: TensorDataset
    checkpoints: list[str]


class Problem(NamedTuple):
    """Both classifiers, the positions of the wrong labels, and the queries with predictions."""

    clean: Trained
    flipped: Trained
    wrong: list[int]
    queries: Float[Tensor, "q 3 h w"]
    predicted: Int64[Tensor, " q"]
    facts: dict[str, Any]


def recorded(
    profile: str | None = None, root: Path | None = None
) -> dict[str, dict[str, Any] | None]:
    """The record of each script by its name, ``None`` where there is none yet.

    They are those of the largest profile that has a record of ours, if none is named.
    """
    if profile is None:
        found = results.largest_record("quanda/ours", root)
        profile = "cpu" if found is None else found[0]
    return {name: results.load_record(profile, f"quanda/{name}", root) for name in SCRIPTS}


def told(records: dict[str, dict[str, Any] | None]) -> Iterator[str]:
    """Lines on the classifiers, which are the same for every script, and the version of quanda."""
    for one in filter(None, records.values()):
        problem, origin = one["problem"], one["provenance"]
        yield f"profile {origin['profile']}: {origin['data']}; quanda {one['quanda']}"
        yield f"{problem['training']}; {problem['wrong labels']} wrong labels in the second"
        for words, kind in (("right", "clean"), ("some wrong", "flipped")):
            of = problem[kind]
            yield (
                f"{words} labels: {of['fitted']:.0%} of the training labels fitted, "
                f"{of['right on queries']:.0%} of the queries right"
            )
        yield f"wrong labels fitted: {problem['flipped']['fitted wrong labels']:.0%}"
        return


def rows(records: dict[str, dict[str, Any] | None]) -> Iterator[dict[str, str]]:
    """One line of a table for each method of each script."""
    for name, record in records.items():
        if record is None:
            yield {"method": name, "note": "not recorded yet"}
            continue
        of = f"{record['package']} {record['version']}"
        if record["error"]:
            yield {"method": of, "note": record["error"]}
        for words, one in record["methods"].items():
            row = {"method": f"{of}: {words}"}
            if one["error"]:
                yield row | {"note": one["error"]}
                continue
            for metric in METRICS:
                found = one[metric]
                row[metric] = str(Estimate(*found)) if len(found) > 1 else f"{found[0]:.3f}"
            yield row | {"seconds": f"{one['seconds']:.0f}"}


def classifier(encoder: nn.Module, features: int, classes: int, seed: int = 0) -> nn.Module:
    """``encoder`` and the linear layer ``fc``, which quanda's wrappers call by name."""
    torch.manual_seed(seed)
    head = nn.Linear(features, classes)
    return nn.Sequential(OrderedDict(encoder=encoder, fc=head))


def flip(
    labels: Int64[np.ndarray, " n"], count: int, classes: int, seed: int = 0
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " m"]]:
    """``count`` labels replaced by another class, each as likely, and their positions."""
    rng = np.random.default_rng(seed)
    wrong = np.sort(rng.permutation(len(labels))[:count])
    flipped = labels.copy()
    flipped[wrong] = (labels[wrong] + rng.integers(1, classes, count)) % classes
    return flipped, wrong


def train(
    model: nn.Module, x: Float[Tensor, "n 3 h w"], labels: Int64[Tensor, " n"], folder: Path,
    epochs: int, seed: int = 0,
) -> None:  # fmt: skip
    """SGD with momentum at one rate, without augmentation; checkpoints at even distances.

    At one rate, TracIn's sum over checkpoints needs no weights.
    """
    temporary = folder.with_name(folder.name + ".part")
    temporary.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    model.train()
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()
        if epoch % (epochs // KEPT) == 0:
            torch.save(model.state_dict(), temporary / f"{epoch:02}.pth")
    temporary.rename(folder)


def write(folder: Path, task: Task, sizes: tuple[int, int, int] | None = None) -> None:
    """Train both classifiers into ``folder``, which must be new, with their images beside them.

    A stopped run goes on with the classifier that it had not finished.
    """
    rng = np.random.default_rng(0)
    (n, q, m), splits = sizes or SIZES[task.profile], ("train", "test")
    whole = [data_for(task.profile, split) for split in splits]
    drawn = [
        images.subset(np.sort(rng.permutation(len(images))[:count]))
        for images, count in zip(whole, (n, q), strict=True)
    ]
    x, queries = (normalise(images.tensor()) for images in drawn)
    encoder, classes = encoder_of(task), len(drawn[0].classes)
    labels, wrong = flip(drawn[0].labels, m, classes)
    temporary = folder.with_name(folder.name + ".part")
    facts: dict[str, Any] = {}
    for name, targets in (("clean", drawn[0].labels), ("flipped", labels)):
        model = classifier(copy.deepcopy(encoder), encoder.num_features, classes)
        y = torch.from_numpy(targets.copy())
        if not (temporary / name).exists():
            train(model, x, y, temporary / name, EPOCHS[task.profile])
        last = max((temporary / name).glob("*.pth"))
        model.load_state_dict(torch.load(last, weights_only=True))
        fitted, answers = (_predicted(model.eval(), images) for images in (x, queries))
        torch.save({"x": x, "y": y, "queries": queries, "answers": answers},
                   temporary / name / "data.pt")  # fmt: skip
        facts[name] = {
            "fitted": _share(fitted == y),
            "fitted wrong labels": _share((fitted == y)[wrong]),
            "right on queries": _share(answers == torch.from_numpy(drawn[1].labels.copy())),
        }
    facts |= {
        "profile": task.profile,
        "wrong": wrong.tolist(),
        "width": encoder.width,
        "classes": classes,
        "training": f"simclr-{task.seed} and a linear layer, {EPOCHS[task.profile]} epochs of SGD, "
        f"rate {RATE}, momentum 0.9, batches of {BATCH}, seed 0",
        "data": "; ".join(
            f"{len(part):,} of {len(images):,} images of {images.name} {split}"
            for part, images, split in zip(drawn, whole, splits, strict=True)
        ),
        "digest": whole[0].digest,
    }
    (temporary / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    temporary.rename(folder)


def read(folder: Path) -> Problem:
    """What :func:`write` wrote."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    parts: dict[str, Trained] = {}
    for name in ("clean", "flipped"):
        encoder = cifar_resnet18(facts["width"])
        model = classifier(encoder, encoder.num_features, facts["classes"]).eval()
        checkpoints = sorted(str(path) for path in (folder / name).glob("*.pth"))
        model.load_state_dict(torch.load(checkpoints[-1], weights_only=True))
        data = torch.load(folder / name / "data.pt", weights_only=True)
        parts[name] = Trained(model, TensorDataset(data["x"], data["y"]), checkpoints)
        if name == "clean":
            asked = data["queries"], data["answers"]
    return Problem(parts["clean"], parts["flipped"], facts["wrong"], *asked, facts)


def run(path: Path, problem: Problem, folder: Path) -> dict[str, Any]:
    """The record of one script, whose libraries keep their files in ``folder``."""
    record: dict[str, Any] = {"lines": lines(path), "package": "", "version": None, "error": None}
    record["methods"] = {}
    try:
        script = runpy.run_path(str(path))
        record["package"], record["version"] = script["PACKAGE"], version(script["PACKAGE"])
        methods = script["methods"](str(folder / "clean"))
    except Exception as error:  # a library that cannot be imported is a finding
        return record | {"error": words_of(error)}
    for words in methods:
        begin = time.process_time()

        def make(part: str, words: str = words) -> tuple[type, dict[str, Any]]:
            return script["methods"](str(folder / part))[words]

        try:
            with limited(SECONDS), _silent():
                one = judged(make, problem, folder) | {"error": None}
            record["methods"][words] = one | {"seconds": round(time.process_time() - begin, 1)}
        except InfluenceError:  # no finding about the library
            raise
        except Exception as error:  # whatever a foreign library raises is the finding
            record["methods"][words] = {"error": words_of(error)}
        print(f"{words}: {record['methods'][words]}", file=sys.stderr)
    return record


def judged(make: Method, problem: Problem, folder: Path) -> dict[str, Any]:
    """Each metric of :data:`METRICS`, with an interval over the queries or the wrong labels.

    ``make(part)``: class and settings of the explainer, whose files are those of ``part``.
    """
    from quanda.metrics.downstream_eval import ClassDetectionMetric, MislabelingDetectionMetric
    from quanda.metrics.heuristics import ModelRandomizationMetric, TopKCardinalityMetric

    clean, flipped = problem.clean, problem.flipped
    explained = _explainer(make("clean"), clean).explain(problem.queries, problem.predicted)
    shape = (len(problem.queries), len(clean.train))
    if tuple(explained.shape) != shape or not bool(torch.isfinite(explained).all()):
        raise ValueError(f"explanations {tuple(explained.shape)}, not finite or not {shape}")
    explained = explained.detach().float()

    detection = ClassDetectionMetric(clean.model, clean.train)
    detection.update(explained, problem.predicted)
    cardinality = TopKCardinalityMetric(clean.model, clean.train, top_k=TOP)
    cardinality.update(explained)
    kind, settings = make("randomised")
    randomised = ModelRandomizationMetric(
        copy.deepcopy(clean.model), "randomised", str(folder / "weights"), clean.train,
        clean.checkpoints, kind, settings,
    )  # fmt: skip
    randomised.update(explained, problem.queries, problem.predicted)

    own = _explainer(make("flipped"), flipped).self_influence().detach().double().numpy()
    mislabelled = MislabelingDetectionMetric(
        flipped.model, flipped.train, problem.wrong,
        precomputed_self_influence=torch.from_numpy(rankdata(own)).float(),
    ).compute()  # fmt: skip
    return {
        "class": _interval(torch.cat(detection.scores)),
        "cardinality": [round(cardinality.compute()["score"], 4)],
        "randomised": _interval(torch.cat(randomised.results["scores"])),
        "mislabelled": mislabelling(mislabelled["success_arr"].numpy(), mislabelled["score"]),
    }


def mislabelling(success: Bool[np.ndarray, " n"], score: float) -> list[float]:
    """quanda's area under the share of wrong labels found so far, with an interval over them.

    Up to 1/n, the area is the mean over the wrong labels of the share of images ranked below them.
    """
    shares = 1 - (np.flatnonzero(success) + 0.5) / len(success)
    value, low, high = mean(shares)
    return rounded({"": Estimate(score, score + low - value, score + high - value)})[""]


def _explainer(made: tuple[type, dict[str, Any]], part: Trained) -> Any:
    kind, settings = made
    return kind(
        model=copy.deepcopy(part.model), train_dataset=part.train, checkpoints=part.checkpoints,
        **settings,
    )  # fmt: skip


def _interval(values: Tensor) -> list[float]:
    return rounded({"": mean(values.double().numpy())})[""]


def _predicted(model: nn.Module, x: Float[Tensor, "n 3 h w"]) -> Int64[Tensor, " n"]:
    with torch.no_grad():
        return torch.cat([model(rows).argmax(1) for rows in x.split(500)])


def _share(hits: Bool[Tensor, " n"]) -> float:
    return round(float(hits.double().mean()), 4)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Progress bars would bury the lines that count."""
    with open(os.devnull, "w") as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield


def main() -> None:
    """Judge the methods of one script and write its record; the data are written once."""
    parser = argparse.ArgumentParser(description="Judge one library's explainers by quanda.")
    parser.add_argument("script", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, required=True, help="a folder for the classifiers")
    parser.add_argument("--profile", choices=SIZES, default="cpu", help="of the data to write")
    options = parser.parse_args()
    if options.script is None:
        write(options.data, Task("quanda", options.profile))
        return
    if options.out is None:
        parser.error("name the record's file")
    begin, name = time.perf_counter(), options.out.stem
    problem = read(options.data)
    with tempfile.TemporaryDirectory() as folder:
        record = run(options.script, problem, Path(folder))
    facts = problem.facts
    record["quanda"] = version("quanda")
    record["problem"] = {key: facts[key] for key in ("clean", "flipped", "training")} | {
        "wrong labels": len(problem.wrong),
        "top": TOP,
    }
    record["provenance"] = results.provenance(
        f"make explainers PROFILE={facts['profile']} (quanda/{name})", facts["profile"], 0,
        facts["data"], facts["digest"], results.device_name("cpu"), time.perf_counter() - begin,
    )  # fmt: skip
    results.save_json(options.out, record)


if __name__ == "__main__":
    main()
