"""All parts in miniature: what they find, what they import, that they go on; and how they stop."""

import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from influence_lab.datasets import load, make_scenes
from influence_lab.experiments import pairwise
from influence_lab.gpu import __main__ as command
from influence_lab.gpu import large, many, packages, packing, peers, suite, training
from influence_lab.gpu.archive import unpacked
from influence_lab.gpu.budget import Budget, OutOfTime
from influence_lab.gpu.packages import NEEDED, ROOT, THERE, Library, Missing, provide
from influence_lab.gpu.packing import unpack
from influence_lab.gpu.sizes import DRY, FULL
from influence_lab.gpu.steps import Journal, Partly, Step
from influence_lab.gpu.workplace import Workplace
from influence_lab.pretrain.methods import build
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_lab.records import results
from influence_ssl import InfluenceError, __version__

# Nothing to import but Python and what the first argument names.
IMPORTS = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

ALLOWED = set(sys.argv.pop(1).split())

class Few:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        root = name.partition(".")[0]
        known = root in ALLOWED or root.startswith("_sysconfigdata")
        return PathFinder.find_spec(name, path, target) if known else None

ALLOWED |= set(sys.stdlib_module_names) | {"influence_ssl", "influence_lab"}
sys.meta_path = [BuiltinImporter, FrozenImporter, Few]
"""
# Two calls with PyTorch, what it needs, and NEEDED.
TWICE = (
    IMPORTS
    + """
from influence_lab.gpu import clocks
from influence_lab.gpu.__main__ import main

clocks.WARM_UP = 0  # of no use where the times are not
for _ in range(2):
    assert main(sys.argv[1:]) == 0
    print("END OF CALL")
"""
)
# What PyTorch itself asks for.
TORCH = (
    "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy", "torchgen",
    "typing_extensions", "functorch", "triton",
)  # fmt: skip
# The tests' own modules.
OWN = ("conftest", "shapes", "durations", "nets", "test_gpu")
# What the packages of NEEDED ask for.
THEIRS = ("wadler_lindig", "_pytest", "py", "iniconfig", "packaging", "pluggy", "pygments")


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The output of two calls in a process that can import little, and the folders they wrote."""
    folder = tmp_path_factory.mktemp("dry")
    allowed = " ".join([*THERE, *NEEDED, *TORCH, *THEIRS])
    done = subprocess.run(
        [
            sys.executable, "-c", TWICE, allowed, "run", *"abcdfg", "--dry",
            "--state", str(folder / "state"), "--out", str(folder / "out"), "--budget", "600",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT / "core"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


@pytest.fixture(scope="module")
def found(dry):
    """The result of every step."""
    rows = json.loads((dry[0] / "state" / "steps.json").read_text())["steps"]
    assert {row["state"] for row in rows.values()} == {"done"}
    return {name: row["value"] for name, row in rows.items()}


def test_a_second_call_has_nothing_left_to_do(dry, found):
    first, second, _ = dry[1].split("END OF CALL\n")
    assert len(re.findall(r": done in [\d.]+ s", first)) == len(found)
    assert second.count(": done before") == len(found)
    assert ": done in" not in second
    assert first.endswith("left to do: nothing\n")


def test_every_test_for_a_card_is_found_and_skipped_on_a_cpu(found):
    tests = found["tests"]
    assert tests["tests"] == tests["skipped"] == len(tests["seconds"]) > 10
    assert not tests["failures"]


def test_tests_for_a_card_import_only_what_is_brought_along():
    allowed = " ".join([*THERE, *NEEDED, *TORCH, *THEIRS, *OWN])
    collect = IMPORTS + "import pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    done = subprocess.run(
        [
            sys.executable, "-c", collect, allowed, "--collect-only", "-m", "gpu",
            "-p", "pytest_timeout", "-p", "no:cacheprovider", *suite.files(),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=packages.environment() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "test_gpu.py" in done.stdout


# Spelt so that this file is none with tests for a card.
WARNS = """
import warnings
import pytest

@pytest.mark.{marker}
def test_of_a_card():
    warnings.warn("only this machine's PyTorch says so")
"""


def test_a_warning_fails_no_test_on_the_machine_with_a_card(work, tmp_path, monkeypatch):
    (tmp_path / "test_warns.py").write_text(WARNS.format(marker="gpu"))
    settings = ["-c", str(ROOT / "pyproject.toml"), str(tmp_path / "test_warns.py")]
    monkeypatch.setattr(suite, "files", lambda: settings)
    found = suite.run(work, Budget(60))
    assert found["tests"] == found["passed"] == 1


def test_costs_and_agreement(found):
    for rank in DRY.ranks:
        for name in ("bfloat16", "TF32", "float32"):
            row = found[f"rank {rank}, {name}"]
            assert row["images"] == DRY.images
            unit = found[f"batch sizes, {name}"]["unit"]
            assert row["ratio"] == pytest.approx(row["wall"] / DRY.images / unit, rel=1e-2)
            rate = found["rates"]["products"][name]
            assert row["share"] == pytest.approx(row["operations"] / row["wall"] / rate, rel=1e-2)
    agreement = found["agreement with the CPU"]
    assert agreement["float32"]["largest relative difference"] < 1e-3
    assert agreement["bfloat16"]["rank correlation"] > 0.9
    assert found["ViT-S"] == {"left out": "timm is not installed here"}


def test_a_trained_encoder_and_its_scores_come_back(dry, found, tmp_path):
    assert found["byol, pace"]["alike"]
    assert found["byol, training"]["epochs"] == len(found["byol, training"]["knn"]) == 2
    names = packing.unpack(dry[0] / "out", tmp_path)
    assert {"steps.json", "log.txt", "results/kernels-bfloat16.txt"} <= set(names)
    small = {f"results/tiny/memorisation-scenes-{kind}.npz" for kind in ("trainings", "predictors")}
    assert small <= set(names)
    encoder = results.load_encoder("tiny", "byol", 0, tmp_path / "results")
    scores = results.load_scores("tiny", "byol", 0, "train", tmp_path / "results")
    assert encoder.width == 4
    assert len(scores) == found["byol, scores of train"]["images"]
    assert scores.provenance["device"].startswith("CPU")


def test_peers_are_measured_or_left_out(found):
    rows = {name.removeprefix("peers, "): row for name, row in found.items() if "peers," in name}
    reference, ours = rows.pop("reference"), rows.pop("ours")
    assert set(rows) == set(packages.PEERS) - {"ours"}
    assert all(": not installed here" in row["left out"] for row in rows.values())
    record = results.load_record("cpu", "pairs/ours")
    assert [ours[name] for name in ("package", "method")] == [
        record[name] for name in ("package", "method")
    ]
    assert (reference["images"], reference["queries"]) == pairwise.SMALL["tiny"]
    for row in (ours["recorded"], ours["wide"]):
        assert row["passes"] == pytest.approx(
            min(row["calls"].values()) / min(row["plain"].values()), rel=1e-2
        )
    assert -1 <= ours["recorded"]["spearman"][0] <= 1
    assert "spearman" not in ours["wide"]


@pytest.fixture
def pairs():
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Flatten()).eval()
    x, y = torch.rand(10, 3, 8, 8), torch.rand(4, 3, 8, 8)
    return encoder, (x, x + 0.1), (y, y - 0.1)


def test_the_fastest_of_a_script_s_calls_counts(pairs, monkeypatch):
    """Batches of 4 are given at once; the others wait."""
    monkeypatch.setattr(peers, "BATCHES", (2, 4))
    expected, asked = torch.rand(4, 10), []

    def influence(encoder, train, queries, damping, batch=64):
        assert all(weight.requires_grad for weight in encoder.parameters())
        assert [len(one) for one in (*train, *queries)] == [10, 10, 4, 4]
        asked.append(batch)
        time.sleep(0.3 if batch != 4 else 0.02)
        return expected + (len(asked) - 1)

    row, values = peers.measured(influence, *pairs, 0.1)
    assert sorted(set(asked)) == [2, 4]
    assert row["calls"].keys() == row["plain"].keys()
    assert row["seconds"] == min(row["calls"].values()) < 0.3 <= max(row["calls"].values())
    assert torch.equal(values, expected)


def test_a_script_without_memory_or_time_is_recorded(pairs, monkeypatch):
    monkeypatch.setattr(peers, "LIMIT", 0.5)

    def large(encoder, train, queries, damping):
        raise torch.cuda.OutOfMemoryError("no memory")

    def long(encoder, train, queries, damping):
        time.sleep(20)

    for influence, calls in ((large, {"contiguous, own batches": None}), (long, {})):
        row, values = peers.measured(influence, *pairs, 0.1)
        assert values is None
        assert row["calls"].items() >= calls.items()
        assert row["error"] == "no call done in 0.5 s and the memory at hand"


SCRIPT = """
import os
import torch
PACKAGE, METHOD, CALLS = "torch", "none", []
def influence(encoder, train, queries, damping):
    CALLS.append(1)
    {body}
    return torch.rand(len(queries[0]), len(train[0]))
"""


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ("pass", {"recorded": None, "wide": None}),
        ("queries = [train[0]]", {"recorded": "a result of shape (48, 48), not (6, 48)"}),
        ("return torch.full((6, 48), torch.nan)", {"recorded": "a result that is not finite"}),
        ("len(CALLS) > 2 and os._exit(7)", {"recorded": None}),
    ],
)  # fmt: skip
def test_what_a_script_finds_before_it_fails_is_kept(work, tmp_path, monkeypatch, body, rows):
    """The last one ends its process with the second encoder."""
    (tmp_path / "peer.py").write_text(SCRIPT.format(body=body))
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    monkeypatch.setattr(peers, "PEERS", {"peer": Library(("torch",))})
    found = peers.run(work, "peer")
    for words, error in rows.items():
        assert ("error" in found[words]) == (error is not None)
        assert error is None or error in found[words]["error"]
    assert ("wide" in found) == ("_exit" not in body)


def test_the_version_of_ours_needs_no_installation(monkeypatch):
    def version(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(peers, "version", version)
    assert peers.release("influence-ssl") == __version__
    with pytest.raises(PackageNotFoundError):
        peers.release("traker")


def test_operations_are_those_of_a_call_counted_by_hand(found):
    """Two views, forward and back to the inputs, of each layer; the stem has none to go back to."""
    sizes = {}
    encoder = cifar_resnet18(DRY.width).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda m, _, out: sizes.update({m: 2 * out[0].numel() * m.weight[0].numel()})
            )
    encoder(torch.zeros(1, 3, 32, 32))
    by_hand = 2 * 2 * sum(sizes.values())
    counted = found[f"rank {DRY.ranks[0]}, float32"]["operations"] / DRY.images
    # Projections come on top, and for this narrow network they weigh a lot.
    assert by_hand < counted < 2 * by_hand


@pytest.fixture
def work(tmp_path):
    journal = Journal(tmp_path / "steps.json", {}, "1a2b")
    return Workplace(DRY, torch.device("cpu"), tmp_path, journal)


def test_a_training_stops_with_the_time_and_the_next_call_goes_on(work, monkeypatch):
    now, said = [0.0], []
    pace = {"eager": {"seconds a step": 1e-6}, "faster": "eager"}
    work.journal.note("byol, pace", "done", 0, value=pace)
    monkeypatch.setattr(work, "say", lambda text: (said.append(text), now.__setitem__(0, 100.0)))
    work.__dict__ |= {"train": make_scenes(64, 0).images, "test": make_scenes(32, 1).images}
    budget = Budget(100, lambda: now[0])
    before = training.train(work, "byol", budget, 1.0)
    assert isinstance(before, Partly)
    assert before.value["epochs"] == 1
    assert not results.load_run("tiny", "byol", 0, work.results)
    # A later call keeps the plan, whatever time it has.
    work.journal.note("byol, training", "partly", 0, value=before.value)
    after = training.train(work, "byol", Budget(1, lambda: 0.0), 1.0)
    assert after["epochs"] == 2
    assert after["plan"] == before.value["plan"]
    assert after["knn"][0] == before.value["knn"][0]
    assert [text.split(",")[0] for text in said] == ["byol: epoch 1 of 2", "byol: epoch 2 of 2"]


def test_a_pace_that_was_stopped_begins_anew(work, monkeypatch):
    """Both trainings have three epochs each, so their losses can be compared."""
    settings = replace(DRY.settings("byol"), epochs=100)
    monkeypatch.setattr(type(DRY), "settings", lambda self, method: settings)
    work.sizes = replace(DRY, backend=None)
    whole, begun = training.pretrain, []

    def stopped(*arguments, **how):
        begun.append(how)
        if len(begun) == 2:
            raise OutOfTime
        return whole(*arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(training, "pretrain", stopped)
        with pytest.raises(OutOfTime):
            training.pace(work, "byol")
    found = training.pace(work, "byol")
    assert [len(found[name]["losses"]) for name in ("eager", "compiled")] == [3, 3]
    assert found["alike"]


def test_a_training_that_stops_before_its_first_note_keeps_its_plan(work, monkeypatch):
    """Its checkpoint belongs to the plan, so the next call must not make another one."""
    pace = {"eager": {"seconds a step": 1e-6}, "faster": "eager"}
    work.journal.note("byol, pace", "done", 0, value=pace)
    work.__dict__ |= {"train": make_scenes(64, 0).images, "test": make_scenes(32, 1).images}

    def over(text):
        raise OutOfTime

    with monkeypatch.context() as patch:
        patch.setattr(Workplace, "say", lambda self, text: over(text))
        with pytest.raises(OutOfTime):
            training.train(work, "byol", Budget(100, lambda: 0.0), 1.0)
    assert (work.runs / "tiny" / "byol-0" / "checkpoint.pt").is_file()
    found = training.train(work, "byol", Budget(-1, lambda: 0.0), 1.0)
    assert found["plan"] == {"epochs": 2, "compiled": False}


def test_what_a_call_has_found_is_there_while_it_goes_on(work, tmp_path, monkeypatch):
    """Earlier results in a new folder, and a copy of an encoder that is still in training."""
    monkeypatch.setattr(training, "COPY", 0)
    work.out, work.__dict__["train"] = tmp_path / "out", make_scenes(64, 0).images
    work.__dict__["test"] = make_scenes(32, 1).images
    pace = {"eager": {"seconds a step": 1e-6}, "faster": "eager"}
    work.journal.note("byol, pace", "done", 0, value=pace)
    whole, seen = training.pretrain, []

    def watched(*arguments, after_epoch, **how):
        def after(run):
            after_epoch(run)
            seen.append(unpack(work.out, tmp_path / f"after {len(run.epochs)}"))
            return True

        return whole(*arguments, after_epoch=after, **how)

    monkeypatch.setattr(training, "pretrain", watched)
    training.train(work, "byol", Budget(100, lambda: 0.0), 1.0)
    assert {"steps.json", "results/tiny/byol-0/encoder.safetensors"} <= set(seen[0])
    steps = json.loads((tmp_path / "after 1" / "steps.json").read_text())["steps"]
    assert steps["byol, training"]["value"]["epochs"] == 1


def test_a_new_folder_gets_what_earlier_calls_found(tmp_path, monkeypatch):
    module, found = importlib.import_module("influence_lab.gpu.call"), []
    monkeypatch.setattr(module, "unpacked", lambda folder: None)
    monkeypatch.setitem(
        module.PARTS, "a",
        lambda work: [Step("look", 0, lambda budget: found.extend(unpack(out, tmp_path / "back")))],
    )  # fmt: skip
    out = tmp_path / "new"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "earlier.txt").write_text("found")
    assert module.call(["a"], tmp_path, out, 100, True) == []
    assert "results/earlier.txt" in found


class Halves:
    """Training runs of which a round takes 2 s per epoch by a clock, however large it is."""

    def __init__(self, now):
        self.now, self.plan, self.done = now, FULL.encoders, 0
        self.trainings = SimpleNamespace(values={"crops": range(0)}, seconds={"crops": 0.0})

    def missing(self):
        return ["crops"] if self.done < self.plan.trainings else []

    def advance(self, together):
        self.now[0] += 2.0 * self.plan.epochs
        self.done += together
        self.trainings.values["crops"] = range(self.done)


def test_small_encoders_are_trained_in_rounds_that_fit(work, monkeypatch):
    """As many at once as pays and as memory and time hold; none is begun that would not end."""
    now = [0.0]
    study, epochs = Halves(now), FULL.encoders.epochs
    rows = {"64": 1.0, "128": 1.5, "200": 1.0, "256": None}
    pace = {k: None if s is None else {"epoch": s} for k, s in rows.items()}
    work.journal.note(many.PACE, "done", 0, value=pace)
    monkeypatch.setattr(many, "study_of", lambda work: study)
    found = many.train(work, Budget(1.7 * epochs, lambda: now[0]))
    assert isinstance(found, Partly)
    assert found.value["training runs"] == {"crops": 200}
    assert work.journal.value(many.TRAININGS) == found.value
    assert isinstance(many.train(work, Budget(epochs, lambda: now[0])), Partly)
    assert study.done == 200
    rest = many.train(work, Budget(1e6, lambda: now[0]))
    assert rest["training runs"] == {"crops": 400}
    work.journal.note(many.PACE, "done", 0, value={"64": None, "256": None})
    with pytest.raises(ValueError, match="not even 64 encoders fit into the card's memory"):
        many.train(work, Budget(1e6, lambda: now[0]))


def test_the_plan_fills_the_time_that_is_left(work):
    sizes = replace(DRY, least=1.0, table="paper", profile="tiny")
    work.sizes = sizes
    pace = {"eager": {"seconds a step": 2.0}, "compiled": {"seconds a step": 1.0}}
    work.journal.note("byol, pace", "done", 0, value=pace | {"faster": "compiled"})
    steps = len(work.train) // sizes.settings("byol").batch
    needed = training.RECORDING + (10 * training.BETWEEN + training.SPARE) * steps
    budget = Budget(needed + 0.1, lambda: 0.0)
    assert training._plan(work, "byol", budget, 1.0) == {"epochs": 10, "compiled": True}
    assert training._plan(work, "byol", budget, 0.5)["epochs"] < 5
    assert sizes.settings("byol", 10).epochs == 10
    assert replace(FULL.settings("byol", 10), profile="paper", epochs=1000) == replace(
        sizes.settings("byol"), profile="paper"
    )


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_planned_training_ends_in_its_call(work, monkeypatch, share):
    """Where an epoch takes as long as planned, none is left for another call."""
    work.sizes, now = replace(DRY, least=1.0, table="paper"), [0.0]
    work.journal.note(
        "byol, pace", "done", 0, value={"eager": {"seconds a step": 2.0}, "faster": "eager"}
    )
    seconds = 2.0 * (len(work.train) // work.sizes.settings("byol").batch)

    def pretrain(settings, *rest, after_epoch, **how):
        run = SimpleNamespace(epochs=[], settings=settings, encoder=None, done=False)
        for _ in range(settings.epochs):
            now[0] += training.BETWEEN * seconds
            run.epochs.append({"seconds": seconds, "loss": 1.0, "knn": 0.5})
            if after_epoch(run):
                break
        run.done = len(run.epochs) == settings.epochs
        return run

    monkeypatch.setattr(training, "pretrain", pretrain)
    monkeypatch.setattr(results, "save_encoder", lambda encoder, path: None)
    monkeypatch.setattr(training.recording, "record", lambda *rest: {"accuracy": 0.5, "cost": {}})
    for budget in (150.0, 400.0, 500.0, 507.0):
        work.journal.steps.pop("byol, training", None)
        now[0] = 0.0
        found = training.train(work, "byol", Budget(budget, lambda: now[0]), share)
        assert not isinstance(found, Partly)
        assert now[0] + training.RECORDING <= share * budget


@pytest.mark.parametrize("method", ["simclr", "byol", "barlow", "supervised"])
def test_what_is_compiled_is_what_a_step_calls(method):
    settings = DRY.settings(method)
    found, called = build(settings, 10, 0), set()
    for name, module in found.named_children():
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    views = [torch.rand(4, 3, 16, 16) for _ in range(found.views)]
    found.loss(views, torch.zeros(4, dtype=torch.long))
    inside = {"encoder", "projector"} if found.views == 2 else set()
    assert set(found.called) == called - inside


def test_the_larger_encoders_are_those_of_the_literature():
    """He et al. 2016 without 2.05 million weights of a classifier; Touvron et al. 2021 likewise."""
    for name, millions in (("ResNet-50", 25.56 - 2.05), ("ViT-S", 22.05 - 0.385)):
        with torch.device("meta"):
            encoder = large.ENCODERS[name][1](FULL.side)
        assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, 1e-3)


def test_a_larger_encoder_is_timed(work, monkeypatch):
    def small(side):
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 16, 16), torch.nn.Flatten())

    monkeypatch.setattr(large, "ENCODERS", {"small": ("torch", small)})
    found = large.run(work, "small")
    assert found["images"] == DRY.large
    assert found["bfloat16"][str(DRY.large)]["ratio"] > 0


def test_an_archive_of_images_is_unpacked_once(tmp_path, monkeypatch):
    for split in ("train", "test"):
        folder = tmp_path / "cifar10" / split / "cat"
        folder.mkdir(parents=True)
        pixels = np.full((32, 32, 3), 7, np.uint8)
        Image.fromarray(pixels).save(folder / "0.png")
    archive, state = tmp_path / "cifar.tar.xz", tmp_path / "state"
    with tarfile.open(archive, "w:xz") as file:
        for split in ("train", "test"):
            file.add(tmp_path / "cifar10" / split, split)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        monkeypatch.setenv("INFLUENCE_SSL_DATA", str(archive))
        unpacked(state)
        assert os.environ["INFLUENCE_SSL_DATA"] == str(state.resolve())
        assert load("cifar10", "test").images.shape == (1, 32, 32, 3)
        archive.write_bytes(b"no archive any more")
    monkeypatch.setenv("INFLUENCE_SSL_DATA", str(archive))
    with pytest.raises(InfluenceError, match="cannot be unpacked"):
        unpacked(tmp_path / "other")
    monkeypatch.setenv("INFLUENCE_SSL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InfluenceError, match="no such folder or archive"):
        unpacked(tmp_path / "other")


def wheel(folder: Path, name: str) -> None:
    """The smallest wheel, of one module."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "VALUE = 7\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


def test_what_is_missing_comes_from_the_wheels(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "NEEDED", {"brought_along": ("brought-along",)})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    with pytest.raises(Missing, match=r"brought_along: not installed here.*make gpu-wheels"):
        provide(tmp_path, tmp_path / "site")
    wheel(tmp_path, "brought_along")
    assert provide(tmp_path, tmp_path / "site") == ["brought_along"]
    assert __import__("brought_along").VALUE == 7
    assert os.environ["PYTHONPATH"].split(os.pathsep) == ["before", str(tmp_path / "site")]
    assert provide(tmp_path, tmp_path / "site") == []


def test_every_package_is_locked():
    lock = (ROOT / "requirements.lock").read_text()
    older, newer = (packages.locked(python) for python in ("3.11", "3.12"))
    for parts in NEEDED.values():
        for one in parts:
            assert re.search(rf"^{one}=={re.escape(newer[one])}\b", lock, re.MULTILINE), one
    for library in packages.PEERS.values():
        assert set(library.distributions) <= set(newer), library
    # As the lock file says, with other releases for other versions of Python.
    assert "scipy==" + older["scipy"] + " ; python_full_version < '3.12'" in lock
    assert "scipy==" + newer["scipy"] + " ; python_full_version >= '3.12'" in lock


def test_peers_without_their_wheels_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    peers = {
        "first": Library(("another_library",), ("another-library",)),
        "second": Library(("another_library",)),
        "third": Library(("another_library", "nowhere"), ("another-library", "nowhere-at-all")),
    }
    monkeypatch.setattr(packages, "PEERS", peers)
    assert packages.provide_peers(tmp_path, tmp_path / "site") == ["first", "second", "third"]
    wheel(tmp_path, "another_library")
    assert packages.provide_peers(tmp_path, tmp_path / "site") == ["third"]
    assert packages.provide_peers(tmp_path, tmp_path / "site") == ["third"]
    assert packages.environment()["PYTHONPATH"].split(os.pathsep) == [
        str(ROOT / "core"), "before", str(tmp_path / "site"),
    ]  # fmt: skip


def test_what_a_call_installs_counts_in_its_time(tmp_path, monkeypatch):
    now, asked = [7.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(packages, "provide", lambda *folders: now.__setitem__(0, 47.0))
    monkeypatch.setattr(
        importlib.import_module("influence_lab.gpu.call"), "call",
        lambda parts, state, out, seconds, dry: asked.append(seconds) or [],
    )  # fmt: skip
    assert command.main(["run", "a", "--state", str(tmp_path), "--budget", "500"]) == 0
    assert asked == [460]


def test_without_a_card_the_command_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["run", "a", "--state", str(tmp_path)]) == 1
    assert "PyTorch finds no CUDA card here; --dry (DRY=1)" in capsys.readouterr().err
