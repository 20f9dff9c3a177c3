"""The benchmark's record: made again at profile tiny, kept part by part, and held to."""

import json
import runpy
import shutil

import numpy as np
import pytest
from scipy.stats import spearmanr

from influence_lab import results, scale
from influence_lab.benchmark import peers
from influence_lab.benchmark.candidates import CANDIDATES, LOSS
from influence_lab.cli import main
from influence_lab.experiments import fidelity
from influence_lab.vectors import Vectors
from influence_ssl import InfluenceError, cli


def test_the_command_takes_the_fewest_draws_that_are_reliable_enough():
    profile, reliability = fidelity.recorded("reliability")
    assert profile != "tiny"
    assert fidelity.draws_needed(reliability) == cli.DRAWS
    given = ["score", "--data", "d", "--encoder", "e", "--out", "o"]
    assert cli.parser().parse_args(given).draws == cli.DRAWS
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

    def stop(work, unit, rounds):
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


def test_a_part_that_is_nowhere_says_what_to_run(root):
    assert fidelity.recorded("reliability", root)[0] == "tiny"
    with pytest.raises(InfluenceError, match="'nothing' is not recorded; run influence-lab"):
        fidelity.recorded("nothing", root)


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


def test_a_further_batch_does_not_pay_for_what_happens_once(monkeypatch):
    """By clocks of our own: a plain pass takes 10 s, a call 30 s and half a second an image; of
    ours, 1 s and a quarter."""
    now = [0.0]

    def spend(amount):
        now[0] += amount

    def score(encoder, clean, noisy, damping):
        spend(30 + len(clean) / 2)

    def our_score(encoder, clean, noisy, damping):
        spend(1 + len(clean) / 4)

    clocks = {"wall": lambda: now[0], "cpu": lambda: 2 * now[0]}
    monkeypatch.setattr(peers.timing, "CLOCKS", clocks)
    monkeypatch.setattr(peers.time, "perf_counter", clocks["wall"])
    monkeypatch.setattr(peers, "plain_pass", lambda encoder, pairs: spend(10 * len(pairs)))
    monkeypatch.setattr(peers, "SPENT", 200.0)
    ours = {"float32": our_score, "bfloat16": score}
    found = peers.speed(score, ours, width=4, rounds=4)
    assert (found["cpu"], found["wall"], found["total"]) == (3.2, 3.2, 6.2)
    assert found["against"] == {"float32": [2, 2, 2], "bfloat16": [1, 1, 1]}
    assert found["rounds"] == 3  # of 62 s each, not more than 200 s
    assert found["further batches"] == 1
    monkeypatch.setattr(peers, "QUICK", 70.0)
    quick = peers.speed(score, ours, width=4, rounds=4)
    assert quick == found | {"bytes": quick["bytes"], "plain bytes": quick["plain bytes"],
                             "further batches": 3}  # fmt: skip
    assert peers.speed(score, ours, width=4, rounds=4, further=5)["further batches"] == 5
    monkeypatch.setattr(peers, "LONG", 60.0)
    found = peers.speed(score, ours, width=4, rounds=4)
    assert (found["wall"], found["total"], found["rounds"]) == (None, 6.2, 1)


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
