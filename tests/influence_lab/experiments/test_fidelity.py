"""The benchmark's record: made again at profile tiny, kept part by part, and held to."""

import json
import runpy
import shutil
from importlib.metadata import version

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from influence_lab.benchmark import scale, timing
from influence_lab.benchmark.candidates import CANDIDATES, LOSS
from influence_lab.cli import main
from influence_lab.experiments import fidelity, peers
from influence_lab.records import results
from influence_lab.records.vectors import Vectors
from influence_ssl import InfluenceError
from influence_ssl.command.main import parser
from influence_ssl.command.score import DRAWS


def test_the_command_takes_the_fewest_draws_that_are_reliable_enough():
    profile, reliability = fidelity.recorded("reliability")
    assert profile != "tiny"
    assert fidelity.draws_needed(reliability) == DRAWS
    given = ["score", "--data", "d", "--encoder", "e", "--out", "o"]
    assert parser().parse_args(given).draws == DRAWS
    assert fidelity.draws_needed({"1": [0.9, 0, 1], "2": [0.949, 0, 1]}) is None
    assert fidelity.draws_needed({"1": [0.9, 0, 1], "2": [0.95, 0, 1], "3": [0.99, 0, 1]}) == 2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The tiny encoder with all recorded vectors but three."""
    root = tmp_path_factory.mktemp("results")
    place = results.folder_of("tiny", "simclr", 0, root)
    place.mkdir(parents=True)
    tracked = results.folder_of("tiny", "simclr", 0)
    shutil.copy(tracked / "encoder.safetensors", place)
    whole = Vectors(tracked / "fidelity.npz")
    part = Vectors(place / "fidelity.npz", whole.origin)
    for name in whole.notes:
        if name not in ("EK-FAC, 0.1", "random 16 joint, 0.1", "1 draws, noise 1"):
            part.add(name, whole[name], **whole.notes[name])
    return root


def test_the_record_is_made_again_and_goes_on_where_it_stopped(root, monkeypatch, tmp_path):
    """First up to the costs; then with one cost measured; the numbers are those recorded."""
    where = ["--profile", "tiny", "--results", str(root), "--out", str(tmp_path / "f.svg")]
    ratio = {"wall": 2.0, "cpu": 2.0, "quartiles": [2.0, 2.0], "rounds": 3}
    timed = []

    def stop(work, units, rounds, slow_rounds):
        timed.append(rounds)
        if len(timed) == 2:
            raise KeyboardInterrupt
        return {"wall": [2.0] * 3, "cpu": [2.0] * 3}

    monkeypatch.setattr(fidelity.timing, "ratios", stop)
    assert main(["reproduce", "fidelity", *where]) == 130
    stopped = results.load_record("tiny", "fidelity", root)
    assert stopped["timing"] == {LOSS: ratio}
    assert "cost" not in stopped
    assert main(["reproduce", "fidelity", *where]) == 0
    assert len(timed) == 2 + len(CANDIDATES)
    made, tracked = (results.load_record("tiny", "fidelity", r) for r in (root, None))
    assert made["cost"] == dict.fromkeys([LOSS, *CANDIDATES], ratio)
    for part in ("spearman", "given the loss", "shipped", "projections", "reliability"):
        assert flat(made[part]) == pytest.approx(flat(tracked[part]), abs=0.005)
    assert (tmp_path / "f.svg").read_text().lstrip().startswith("<?xml")
    # Stopped after the last cost, there is nothing left to time and nothing to lose.
    path = root / "tiny" / "fidelity.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({"timing" if k == "cost" else k: v for k, v in whole.items()}))
    assert main(["reproduce", "fidelity", *where]) == 0
    again = results.load_record("tiny", "fidelity", root)
    assert again["cost"] == made["cost"]
    assert "timing" not in again
    assert len(timed) == 2 + len(CANDIDATES)


def flat(value):
    if isinstance(value, dict):
        return [number for inner in value.values() for number in flat(inner)]
    return value


def test_recorded_numbers_follow_from_the_recorded_vectors():
    for path in sorted(results.results_root().glob("*/fidelity.json")):
        record, profile = json.loads(path.read_text()), path.parent.name
        vectors = Vectors(results.folder_of(profile, "simclr", 0) / "fidelity.npz")
        exact = vectors["exact, 0.1"]
        for joint in ("per layer", "joint"):
            found = spearmanr(vectors[f"shipped 16 {joint}, projection 0"], exact).statistic
            assert record["shipped"][joint]["16"][0] == pytest.approx(found, abs=1e-4)
        pair = [vectors[f"2 draws, noise {seed}"] for seed in (0, 1)]
        found = spearmanr(*pair).statistic
        assert record["reliability"]["2"][0] == pytest.approx(found, abs=1e-4)


def test_a_part_that_is_nowhere_says_what_to_run(tmp_path):
    record = {"reliability": {"1": [0.9, 0, 1]}}
    results.save_json(tmp_path / "tiny" / "fidelity.json", record)
    assert fidelity.recorded("reliability", tmp_path)[0] == "tiny"
    with pytest.raises(InfluenceError, match="'nothing' is not recorded; run influence-lab"):
        fidelity.recorded("nothing", tmp_path)


def test_lines_of_code_are_counted_without_words(tmp_path):
    path = tmp_path / "peer.py"
    path.write_text(
        '"""Two\nlines."""\n\nimport os  # why\n\n\n# a comment\ndef f(\n    x,\n):\n'
        '    """Words."""\n    return {\n        "a": x,\n    }\n'
    )
    assert peers.lines(path) == 1 + 3 + 3


def test_peak_memory_sees_what_is_taken_for_a_moment():
    def work():
        np.ones(30_000_000)

    assert scale.peak(work) == pytest.approx(240e6, rel=0.1)


def test_a_peer_is_measured_and_one_that_fails_is_recorded(root, tmp_path, monkeypatch):
    monkeypatch.setenv("INFLUENCE_SSL_RESULTS", str(root))
    head = 'PACKAGE, METHOD = "torch", "the loss"\n\n\ndef score(encoder, clean, noisy, damping):\n'
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(
        f"import torch\n\n{head}    with torch.no_grad():\n"
        "        return 1 - torch.cosine_similarity(encoder(clean), encoder(noisy))\n"
    )
    bad.write_text(f'{head}    raise ValueError("no convolutions\\nhere")\n')
    ours = {"itself": runpy.run_path(str(good))["score"]}
    found = peers.run(good, ours, "tiny", width=4, rounds=4)
    exact, loss = (
        Vectors(results.folder_of("tiny", "simclr", 0) / "fidelity.npz")[name]
        for name in ("exact, 0.1", LOSS)
    )
    assert found["spearman"][0] == pytest.approx(spearmanr(loss, exact).statistic, abs=1e-3)
    assert found["error"] is None
    assert 0.1 < found["speed"]["total"] < 0.9
    failed = peers.run(bad, ours, "tiny", width=4, rounds=2)
    assert failed["error"] == "ValueError: no convolutions here"
    # Data that are not there say nothing about a library.
    monkeypatch.setenv("INFLUENCE_SSL_DATA", str(tmp_path))
    with pytest.raises(InfluenceError, match="no CIFAR-10 found"):
        peers.run(bad, ours, "cpu", width=4, rounds=2)


class Clock:
    """A clock of our own, which shows twice the wall's time as the processor's."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        clocks = {"wall": lambda: self.now, "cpu": lambda: 2 * self.now}
        monkeypatch.setattr(timing, "CLOCKS", clocks)
        monkeypatch.setattr(timing, "plain_pass", self.plain)
        self.plain_seconds = {"contiguous": 10.0, "channels-last": 8.0}

    def spend(self, amount):
        self.now += amount

    def plain(self, encoder, pairs):
        self.spend(self.plain_seconds[layout_of(encoder, pairs[0])])


def layout_of(encoder, images):
    """Of the weights and of the images, which must be in the same one."""
    last = [
        x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        for x in (images, encoder.layer1[0].conv1.weight)
    ]
    assert last[0] == last[1]
    return "channels-last" if last[0] else "contiguous"


@pytest.mark.parametrize("faster", ["contiguous", "channels-last"])
def test_a_peer_is_measured_in_its_faster_layout_over_the_faster_plain_pass(monkeypatch, faster):
    """A plain pass takes 10 s in one layout and 8 s in the other, a call 3 s and an eighth of a
    second an image, and a fifth more in the layout that is not the faster one."""
    clock = Clock(monkeypatch)

    def score(encoder, clean, noisy, damping):
        assert layout_of(encoder, clean) == layout_of(encoder, noisy)
        slower = layout_of(encoder, clean) != faster
        clock.spend((3 + len(clean) / 8) * (1.2 if slower else 1))

    def our_score(encoder, clean, noisy, damping):
        clock.spend(1 + len(clean) / 16)

    found = peers.speed(score, {"float32": our_score}, width=16, rounds=4)
    assert found["layout"] == faster
    assert (found["wall"], found["cpu"]) == (1.0, 1.0)  # 64 / 8 over 8 s
    assert found["total"] == 1.375
    assert found["against"] == {"float32": [2, 2, 2]}
    assert found["rounds"] == 4
    assert (found["further batches"], found["batch"], found["refused"]) == (1, 64, {})


def test_a_layout_that_a_peer_refuses_is_recorded(monkeypatch):
    clock = Clock(monkeypatch)

    def score(encoder, clean, noisy, damping):
        if layout_of(encoder, clean) == "channels-last":
            raise RuntimeError("view size is not\ncompatible")
        clock.spend(8)

    found = peers.speed(score, {}, width=16, rounds=2)
    assert found["layout"] == "contiguous"
    assert found["refused"] == {"channels-last": "RuntimeError: view size is not compatible"}


def test_a_slow_peer_has_fewer_rounds_and_a_very_slow_one_has_none(monkeypatch):
    clock = Clock(monkeypatch)
    seconds = {"once": 0.0, "image": 0.5}

    def score(encoder, clean, noisy, damping):
        clock.spend(seconds["once"] + seconds["image"] * len(clean))

    def measured(**settings):
        return peers.speed(score, {}, width=16, rounds=10, **settings)

    assert measured()["rounds"] == peers.LEAST
    assert measured(batch=16)["rounds"] == 10
    seconds["once"] = 100.0
    found = measured()
    assert (found["wall"], found["total"], found["rounds"]) == (None, 132 / 8, 1)
    found = measured(further=5)
    assert (found["wall"], found["further batches"], found["rounds"]) == (4.0, 5, 1)


def test_a_kept_rank_correlation_is_that_of_the_same_version_and_method(tmp_path, monkeypatch):
    path = tmp_path / "peer.py"
    path.write_text(
        'PACKAGE, METHOD = "torch", "the loss"\n\n\n'
        "def score(encoder, clean, noisy, damping):\n    return encoder(clean)[:, 0]\n"
    )
    monkeypatch.setattr(peers, "fidelity", None)  # nothing is measured again
    known = {"package": "torch", "version": version("torch"), "method": "the loss",
             "error": None, "spearman": [0.5, 0.4, 0.6]}  # fmt: skip
    found = peers.run(path, {}, "tiny", 4, 2, batch=2, known=known)
    assert (found["error"], found["spearman"]) == (None, [0.5, 0.4, 0.6])
    with pytest.raises(InfluenceError, match=r"recorded version is '1'.*--speed"):
        peers.run(path, {}, "tiny", 4, 2, known=known | {"version": "1"})


def test_a_peer_can_be_measured_at_another_rank(root, tmp_path, monkeypatch):
    monkeypatch.setenv("INFLUENCE_SSL_RESULTS", str(root))
    path = tmp_path / "ranked.py"
    path.write_text(
        'PACKAGE, METHOD = "torch", "LoGra, rank 16, per layer"\n\n\n'
        "def score(encoder, clean, noisy, damping, rank=16):\n"
        '    raise ValueError(f"rank {rank}")\n'
    )
    found = {rank: peers.run(path, {}, "tiny", 4, 2, rank) for rank in (None, 64)}
    assert [one["method"] for one in found.values()] == [
        "LoGra, rank 16, per layer", "LoGra, rank 64, per layer",
    ]  # fmt: skip
    assert [one["error"] for one in found.values()] == [
        "ValueError: rank 16",
        "ValueError: rank 64",
    ]
