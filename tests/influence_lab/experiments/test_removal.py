"""Removal: the right images go, each training is recorded at once, and stopping changes nothing."""

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from influence_lab.cli import main
from influence_lab.datasets import make_scenes
from influence_lab.experiments import removal, removed_images
from influence_lab.experiments.removal import PLANS, Plan, Training
from influence_lab.experiments.removal_losses import LOSSES
from influence_lab.experiments.task import Task
from influence_lab.pretrain import METHODS, PROFILES, cost, pretrain, settings_for
from influence_lab.pretrain.methods import build
from influence_lab.pretrain.resnets import cifar_resnet18, normalise
from influence_lab.pretrain.settings import TABLE_3
from influence_lab.records import recording, results
from influence_lab.records.locks import locked
from influence_ssl import InfluenceError, Scores

SMALL = Plan(pool=96, amounts=(32,), epochs=1, seeds=(0, 42), methods=("supervised",))
TRAINING, TESTS = make_scenes(128, 0).images, make_scenes(48, 1).images


def recorded_scores(n=128, seed=0):
    magnitude = np.random.default_rng(seed).permutation(n) + 1.0
    made = Scores(-magnitude, np.full(n, np.nan), np.arange(n), None, {"command": f"test {seed}"})
    return results.compress(made, {}), magnitude


def put_scores(root, *methods, seed=0):
    for method in methods:
        name = results.scores_name("train", labels=method == "supervised")
        path = results.folder_of("tiny", method, 0, root) / name
        results.save_scores(recorded_scores(seed=seed)[0], path)


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Profile tiny with fewer images and invented scores."""
    parts = {"train": TRAINING, "test": TESTS}
    monkeypatch.setattr(removal, "data_for", lambda profile, split: parts[split])
    put_scores(tmp_path / "results", "supervised")
    return Task(
        "fig-6", "tiny", out=tmp_path / "f.svg", runs=tmp_path / "runs", root=tmp_path / "results"
    )


@pytest.mark.parametrize("amount", [1, 7, 20])
def test_orders_drop_the_right_images(amount):
    scores, magnitude = recorded_scores(50, seed=3)
    pool = Plan(pool=30, amounts=(amount,), epochs=1).indices(50)
    assert len(set(pool.tolist())) == 30
    assert (np.diff(pool) > 0).all()
    rest = {
        order: removal.kept(Training("simclr", order, amount, 0), scores, pool)
        for order in removal.ORDERS
    }
    by_size = sorted(pool.tolist(), key=lambda i: magnitude[i])
    assert rest["highest"].tolist() == sorted(by_size[: 30 - amount])
    assert rest["lowest"].tolist() == sorted(by_size[amount:])
    assert len(rest["random"]) == 30 - amount
    assert set(rest["random"]) <= set(pool)
    assert removal.kept(Training("simclr", "none", 0, 0), scores, pool).tolist() == pool.tolist()


def test_random_removal_knows_neither_method_nor_scores_and_amounts_are_nested():
    pool = np.arange(40)
    scores, others = recorded_scores(40, seed=1)[0], recorded_scores(40, seed=2)[0]

    def gone(scores, method, order, amount, seed):
        left = removal.kept(Training(method, order, amount, seed), scores, pool)
        return set(pool.tolist()) - set(left.tolist())

    first = gone(scores, "simclr", "random", 8, 42)
    assert first == gone(others, "byol", "random", 8, 42)
    assert first != gone(scores, "simclr", "random", 8, 0)
    for order in removal.ORDERS:
        assert gone(scores, "byol", order, 8, 0) < gone(scores, "byol", order, 20, 0)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_plan_is_done_seed_by_seed(profile):
    plan = PLANS[profile]
    trainings = plan.trainings()
    assert len(set(trainings)) == len(trainings) == 3 * 4 * (1 + 3 * len(plan.amounts))
    assert [t.seed for t in trainings] == sorted((t.seed for t in trainings), key=plan.seeds.index)
    assert plan.seeds == (0, 42, 123)
    n = 512 if profile == "tiny" else 50_000
    assert max(plan.amounts) < len(plan.indices(n))


@pytest.mark.parametrize("method", METHODS)
def test_settings_are_table_3_s_or_the_profile_s_with_fewer_epochs(method):
    paper = asdict(PLANS["paper"].settings(method, "paper"))
    assert paper == asdict(settings_for(method, "paper")) | TABLE_3.get(method, {})
    for profile in ("cpu", "gpu"):
        usual = settings_for(method, profile)
        short = PLANS[profile].settings(method, profile)
        assert short.epochs < usual.epochs
        assert replace(short, epochs=usual.epochs) == usual


def test_profile_cpu_takes_about_four_hours_of_two_cores():
    plan, hours = PLANS["cpu"], dict.fromkeys(METHODS, 0.0)
    for training in plan.trainings():
        settings = plan.settings(training.method, "cpu")
        seconds = cost.seconds(settings, plan.pool - training.amount, 10, cost.DEVICES["cpu"])
        hours[training.method] += seconds / 3600
    stated = {"simclr": 2.1, "byol": 2.3, "barlow": 1.7, "supervised": 1.9}
    assert hours == pytest.approx(stated, abs=0.06)
    measuring = 84 * 20_000 * 1.5e-3 / 3600
    assert sum(hours.values()) + measuring == pytest.approx(8.7, abs=0.1)


def test_accuracies_are_the_probes_and_the_encoder_s_own():
    scenes = make_scenes(200, 5).images
    bank, test = scenes.subset(np.arange(120)), scenes.subset(np.arange(120, 200))
    torch.manual_seed(0)
    encoder = cifar_resnet18(4, num_classes=4).eval()
    found = removal.measure(encoder, bank, test)
    assert {m: found[m] for m in ("knn", "linear")} == recording.accuracies(encoder, bank, test)
    with torch.no_grad():
        right = encoder(normalise(test.tensor())).argmax(1).numpy() == test.labels
    assert found["classifier"] == pytest.approx(right.mean())
    assert set(removal.measure(cifar_resnet18(4), bank, test)) == {"knn", "linear"}


def timeless(record):
    """A record without what differs from one run to the next."""
    outcomes = [{k: v for k, v in o.items() if k != "seconds"} for o in record["outcomes"]]
    origin = {k: v for k, v in record["provenance"].items() if k != "wall_seconds"}
    return {**record, "outcomes": outcomes, "provenance": origin}


@pytest.fixture
def trained(monkeypatch):
    """The names of the images of every training, in the order of the trainings."""
    seen = []

    def watched(settings, seed, train, *rest, **how):
        seen.append(set(train.names))
        return pretrain(settings, seed, train, *rest, **how)

    monkeypatch.setattr(removal, "pretrain", watched)
    return seen


def test_the_command_goes_on_after_ctrl_c_and_ends_in_the_same_record(
    task, trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(PLANS, "tiny", SMALL)
    whole = removal.carry_out(SMALL, task, progress=False)
    assert len(whole["outcomes"]) == len(trained) == 8
    assert removal.BEFORE in whole
    # What was trained on is what is left, by brute force from the scores.
    _, magnitude = recorded_scores()
    pool = sorted(SMALL.indices(128).tolist(), key=lambda i: magnitude[i])
    for training, seen in zip(SMALL.trainings(), trained, strict=True):
        if training.order != "random":
            k = training.amount
            left = {"none": pool, "highest": pool[: 96 - k], "lowest": pool[k:]}[training.order]
            assert seen == {TRAINING.names[i] for i in left}, training

    root, runs = tmp_path / "again", tmp_path / "other-runs"
    put_scores(root, "supervised")
    measure, calls = removal.measure, []

    def interrupted(encoder, bank, test):
        calls.append(1)
        # The same for every training, what was removed included.
        assert set(bank.names) == {TRAINING.names[i] for i in SMALL.indices(128)}
        if len(calls) in (3, 7):
            raise KeyboardInterrupt
        return measure(encoder, bank, test)

    monkeypatch.setattr(removal, "measure", interrupted)
    command = ["reproduce", "fig-6", "--profile", "tiny", "--results", str(root)]
    command += ["--runs", str(runs), "--out", str(tmp_path / "figure.svg")]
    path = root / "tiny" / "removal.json"
    for recorded in (2, 5):
        assert main(command) == 130
        assert "repeat the command to resume" in capsys.readouterr().err
        assert len(json.loads(path.read_text())["outcomes"]) == recorded
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "8 of 8 training runs recorded; " in shown.out
    assert shown.err.count("min; left, for one process: ") == 3
    assert timeless(json.loads(path.read_text())) == timeless(whole)
    assert (tmp_path / "figure.svg").read_text().lstrip().startswith("<?xml")
    # Nothing is trained twice except what was cut off, and no checkpoint stays behind.
    assert len(trained) == 8 + 8 + 2
    assert not [p for p in runs.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert main(command) == 0
    assert len(trained) == 18


def test_the_start_is_what_the_methods_without_labels_begin_with(task):
    study = removal.Study(SMALL, task, progress=False)
    study.measure_start()
    record = study.record()
    bank = TRAINING.subset(SMALL.indices(128))
    for n, seed in enumerate(SMALL.seeds):
        for method in ("simclr", "byol", "barlow"):
            encoder = build(SMALL.settings(method, "tiny"), 4, seed).encoder.eval()
            found = recording.accuracies(encoder, bank, TESTS)
            for name, shares in record[removal.BEFORE].items():
                assert shares[n] == pytest.approx(found[name], abs=1e-6)
    assert set(record[removal.BEFORE]) == {"knn", "linear"}


def test_a_folder_for_locks_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InfluenceError, match=r"a.lock: cannot be written .*another folder"),
        locked(tmp_path / "file" / "a.lock", wait=False),
    ):
        pass


def test_what_another_process_is_at_is_left_to_it(task, trained):
    plan = replace(SMALL, seeds=(0,))
    lock = task.runs / "tiny" / "removal-0" / "supervised-highest-32-0.lock"
    with locked(lock, wait=False) as mine:
        assert mine
        record = removal.carry_out(plan, task, progress=False)
    assert [o["order"] for o in record["outcomes"]] == ["none", "lowest", "random"]
    record = removal.carry_out(plan, task, progress=False)
    assert [o["order"] for o in record["outcomes"]] == ["none", "highest", "lowest", "random"]
    assert len(trained) == 4


def test_methods_without_scores_wait_for_the_others(task, monkeypatch):
    made = []

    def fake(method, profile, seed, split, device, runs, root, labels):
        assert labels == (method == "supervised")
        made.append((method, len(results.load_record("tiny", "removal", root)["outcomes"])))
        put_scores(root, method)

    monkeypatch.setattr(removal, "recorded_or_made", fake)
    plan = replace(SMALL, seeds=(0,), methods=("barlow", "supervised"))
    record = removal.carry_out(plan, task, progress=False)
    assert made == [("barlow", 4)]
    assert [o["method"] for o in record["outcomes"]] == ["barlow", "supervised"] * 4


def test_other_settings_or_scores_are_not_mixed_into_a_record(task):
    plan = replace(SMALL, seeds=(0,))
    before = removal.carry_out(plan, task, progress=False)
    more = replace(plan, seeds=(0, 42))
    for other, said in (
        (replace(more, epochs=2), "supervised was recorded with other settings"),
        (replace(more, pool=80), "removal-losses.npz: was made with another pool"),
    ):
        with pytest.raises(InfluenceError, match=said):
            removal.carry_out(other, task, progress=False)
    put_scores(task.root, "supervised", seed=1)
    with pytest.raises(InfluenceError, match="other scores than asked for; move the file away"):
        removal.carry_out(more, task, progress=False)
    assert results.load_record("tiny", "removal", task.root) == before


def test_a_plan_that_removes_everything_is_refused(task):
    with pytest.raises(InfluenceError, match=r"\(32, 96\): not all smaller than the pool of 96"):
        removal.carry_out(replace(SMALL, amounts=(32, 96)), task, progress=False)


def test_time_left_is_by_method_and_size():
    outcomes = [
        {"method": "simclr", "images": 100, "seconds": 50.0},
        {"method": "simclr", "images": 50, "seconds": 25.0},
        {"method": "byol", "images": 100, "seconds": 100.0},
    ]
    left = [Training("simclr", "highest", 40, 0), Training("byol", "none", 0, 0)]
    assert removal.hours_left(outcomes, left, 100) == pytest.approx((60 * 0.5 + 100) / 3600)
    unknown = [Training("barlow", "none", 0, 0)]
    assert removal.hours_left(outcomes, unknown, 100) == pytest.approx(100 * 0.5 / 3600)


def test_removed_classes_are_counted(task):
    record = removal.carry_out(replace(SMALL, seeds=(0,)), task, progress=False)
    _, magnitude = recorded_scores()
    pool = sorted(SMALL.indices(128).tolist(), key=lambda i: magnitude[i])
    counts = record["methods"]["supervised"]["removed per class"]
    expected = {"highest": pool[-32:], "lowest": pool[:32]}
    for order, gone in expected.items():
        assert counts[order]["32"] == np.bincount(TRAINING.labels[gone], minlength=4).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_a_training_of_the_plan_ends_the_same_twice(method, tmp_path):
    """On one machine. Another rounds otherwise, and training amplifies that."""
    train, test = (recording.data_for("tiny", part) for part in ("train", "test"))
    bank = train.subset(PLANS["tiny"].indices(len(train)))
    settings = PLANS["tiny"].settings(method, "tiny")
    one, other = (
        pretrain(settings, 42, bank, None, tmp_path / name, progress=False)
        for name in ("one", "other")
    )
    assert [epoch["loss"] for epoch in one.epochs] == [epoch["loss"] for epoch in other.epochs]
    found = removal.measure(one.encoder, bank, test)
    assert found == removal.measure(other.encoder, bank, test)
    assert all(0 <= share <= 1 for share in found.values())


def test_every_run_measures_the_losses_of_all_pool_images(task, trained):
    plan = replace(SMALL, seeds=(0,))
    record = removal.carry_out(plan, task, progress=False)
    rows = removed_images.losses_of("tiny", task.root).rows
    assert set(rows) == {removal.name_of(training) for training in plan.trainings()}
    for row in rows.values():
        assert {name: len(values) for name, values in row.items()} == dict.fromkeys(LOSSES, 96)
    # A run whose losses are lost is done again, and replaces its outcome.
    study = removal.Study(plan, task, progress=False)
    losses = study.losses()
    before = losses.rows.pop("supervised-lowest-32-0")
    losses.write()
    assert study.missing() == [Training("supervised", "lowest", 32, 0)]
    again = removal.carry_out(plan, task, progress=False)
    assert timeless(again) == timeless(record)
    for name, values in study.losses().rows["supervised-lowest-32-0"].items():
        assert np.array_equal(values, before[name])


RECORDS = {path.parent.name: path for path in results.results_root().glob("*/removal.json")}


@pytest.mark.parametrize("profile", RECORDS)
def test_the_record_is_of_the_plan(profile):
    """Its settings are the code's, its trainings the plan's, each on the images that are left."""
    record, plan = json.loads(RECORDS[profile].read_text()), PLANS[profile]
    assert record["plan"] == json.loads(json.dumps(asdict(plan)))
    done = [Training(*(o[name] for name in Training._fields)) for o in record["outcomes"]]
    assert done == [training for training in plan.trainings() if training in set(done)]
    for training, outcome in zip(done, record["outcomes"], strict=True):
        assert outcome["images"] == plan.pool - training.amount
        assert np.isfinite(outcome["loss"])
        measured = set(removal.MEASURES) & set(outcome)
        assert measured == {"knn", "linear"} | (
            {"classifier"} if training.method == "supervised" else set()
        )
        assert all(0 <= outcome[name] <= 1 for name in measured)
    for method, origin in record["methods"].items():
        assert origin["settings"] == asdict(plan.settings(method, profile))
        assert origin["pool"] == plan.pool
        for counts in origin["removed per class"].values():
            assert {int(k): sum(of_class) for k, of_class in counts.items()} == {
                amount: amount for amount in plan.amounts
            }
        if profile == "tiny":
            assert origin["data_sha256"] == recording.data_for("tiny", "train").digest
        else:  # the ranks that decided what was removed are tracked beside the record
            labels = method == "supervised"
            ranks = results.load_scores(profile, method, 0, "train", labels=labels).rank
            found = hashlib.sha256(ranks.tobytes()).hexdigest()
            assert origin["scores"]["rank_sha256"] == found
