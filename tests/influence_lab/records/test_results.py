"""Records: exact ranks, honest quantiles, encoders that come back, and the command over them."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from influence_lab.cli import main
from influence_lab.experiments import distributions
from influence_lab.pretrain import settings_for
from influence_lab.pretrain.checkpoint import read_checkpoint
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_lab.records import recording, results
from influence_ssl import InfluenceError, Scores
from influence_ssl.encoders import builtin
from influence_ssl.provenance import made_with


def made(n, seed=0, ties=False):
    magnitude = np.exp(np.random.default_rng(seed).normal(6, 1, n))
    if ties:
        magnitude = magnitude.round(-2) + 1
    return Scores(-magnitude, np.full(n, np.nan), np.arange(n), None, {"seed": 0})


@pytest.mark.parametrize(("n", "ties"), [(5000, False), (5000, True), (50, False)])
def test_ranks_are_exact_and_values_near(tmp_path, n, ties):
    scores = made(n, ties=ties)
    recorded = results.compress(scores, {"profile": "test"})
    np.testing.assert_array_equal(recorded.order("lowest"), scores.order("lowest"))
    if not ties:
        np.testing.assert_array_equal(recorded.order("highest"), scores.order("highest"))
    place = results.folder_of("tiny", "simclr", 0, tmp_path)
    results.save_scores(recorded, place / "scores-test.npz")
    again = results.load_scores("tiny", "simclr", 0, "test", tmp_path)
    np.testing.assert_array_equal(again.rank, recorded.rank)
    assert again.provenance == {"seed": 0, "profile": "test"}
    assert again.mean == pytest.approx(scores.magnitude.mean(), rel=1e-14)
    exact, near = distributions.summary(scores.magnitude), distributions.summary(again.magnitude)
    # Between quantiles a tie is smeared, so only untied values are held to this.
    if not ties:
        assert tuple(near) == pytest.approx(tuple(exact), abs=2e-3)
    if n == 50:
        np.testing.assert_allclose(again.magnitude, scores.magnitude, rtol=1e-12)


def test_scores_of_a_part_of_a_data_set_are_refused():
    part = Scores(-np.ones(3), np.ones(3), np.array([4, 5, 6]))
    with pytest.raises(InfluenceError, match="expected 0"):
        results.compress(part, {})


def test_an_encoder_comes_back_to_half_precision(tmp_path):
    torch.manual_seed(0)
    encoder = cifar_resnet18(4, num_classes=3)
    encoder(torch.randn(8, 3, 16, 16))
    path = results.folder_of("tiny", "simclr", 0, tmp_path) / "encoder.safetensors"
    results.save_encoder(encoder, path)
    again = results.load_encoder("tiny", "simclr", 0, tmp_path)
    for name, value in encoder.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(again.state_dict()[name], expected), name
    assert not again.training
    assert path.stat().st_mode & 0o044, "readable for others"


def test_slim_encoders_stay_small(tmp_path):
    path = tmp_path / "encoder.safetensors"
    results.save_encoder(cifar_resnet18(16, num_classes=10), path)
    assert path.stat().st_size < 1.5e6


def test_a_run_whose_encoder_is_packaged_takes_that_one_until_it_is_recorded_again(tmp_path):
    assert results.weights_of("cpu", "simclr", 0) == builtin.WEIGHTS
    place = results.folder_of("cpu", "simclr", 0, tmp_path)
    results.save_json(place / "run.json", {})
    assert results.load_encoder("cpu", "simclr", 0, tmp_path) is None
    results.save_json(place / "run.json", {"encoder": "builtin:cifar-simclr"})
    packaged = results.load_encoder("cpu", "simclr", 0, tmp_path)
    assert packaged.width == 16
    results.save_encoder(cifar_resnet18(4), place / "encoder.safetensors")
    assert results.load_encoder("cpu", "simclr", 0, tmp_path).width == 4


def test_broken_and_foreign_encoders_are_named(tmp_path):
    from safetensors.torch import save_file

    path = results.folder_of("tiny", "byol", 0, tmp_path) / "encoder.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InfluenceError, match="not a safetensors file"):
        results.load_encoder("tiny", "byol", 0, tmp_path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(InfluenceError, match=r"no conv1\.weight"):
        results.load_encoder("tiny", "byol", 0, tmp_path)
    save_file({"conv1.weight": torch.zeros(4, 3, 3, 3)}, path)
    with pytest.raises(InfluenceError, match="does not fit a CIFAR ResNet-18 of width 4"):
        results.load_encoder("tiny", "byol", 0, tmp_path)


def test_what_is_not_there_is_none(tmp_path):
    assert results.load_run("cpu", "byol", 7, tmp_path) is None
    assert results.load_encoder("cpu", "byol", 7, tmp_path) is None
    assert results.load_scores("cpu", "byol", 7, "train", tmp_path) is None


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tiny run, trained and scored through the command."""
    root, runs = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("runs")
    where = ["--profile", "tiny", "--results", str(root), "--runs", str(runs)]
    assert main(["pretrain", "simclr", *where]) == 0
    assert main(["score", "simclr", *where]) == 0
    return root, runs, where


def test_records_that_are_not_installed_are_found_in_a_clone(tmp_path, monkeypatch):
    book = results.results_root()
    monkeypatch.delenv("INFLUENCE_SSL_RESULTS", raising=False)
    monkeypatch.setattr(results, "__file__", str(tmp_path / "a/b/c/results.py"))
    with pytest.raises(InfluenceError, match="pip install -e"):
        results.load_encoder("tiny", "simclr", 0)
    monkeypatch.setenv("INFLUENCE_SSL_RESULTS", str(book))
    assert results.load_encoder("tiny", "simclr", 0) is not None


def test_the_command_records_a_run_with_its_provenance(places):
    record = results.load_run("tiny", "simclr", 0, places[0])
    origin = record["provenance"]
    assert origin["command"] == "influence-lab pretrain simclr --profile tiny --seed 0"
    assert origin["data_sha256"] == recording.data_for("tiny", "train").digest
    assert origin["wall_seconds"] > 0
    assert origin.items() >= made_with().items()
    assert len(record["epochs"]) == 2
    assert record["settings"]["method"] == "simclr"
    assert 0.15 < record["accuracy"]["knn"] <= 1
    # Measured with the encoder as it is tracked, in float16.
    tracked = results.load_encoder("tiny", "simclr", 0, places[0])
    parts = [recording.data_for("tiny", split) for split in ("train", "test")]
    assert recording.accuracies(tracked, *parts) == record["accuracy"]


def test_the_encoder_that_is_measured_is_the_one_that_is_written(places, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(
        recording, "accuracies", lambda encoder, *parts: measured.append(encoder) or {}
    )
    runs = Path(places[2][-1])
    assert recording.pretrain_and_record(
        "simclr", "tiny", 0, progress=False, runs=runs, root=tmp_path
    )
    tracked = results.load_encoder("tiny", "simclr", 0, tmp_path).state_dict()
    assert all(torch.equal(tracked[k], v) for k, v in measured[0].state_dict().items())
    assert any((v.half().float() != v).any() for v in trained_weights(runs))


def trained_weights(runs):
    path = next(Path(runs).rglob("checkpoint.pt"))
    state = read_checkpoint(path)["method"]
    return [value for value in state.values() if value.is_floating_point()]


def test_recorded_scores_are_those_of_the_recorded_encoder(places):
    recorded = results.load_scores("tiny", "simclr", 0, "train", places[0])
    encoder = results.load_encoder("tiny", "simclr", 0, places[0])
    scores = recording.score_images(encoder, recording.data_for("tiny", "train"), progress=False)
    np.testing.assert_array_equal(recorded.order("lowest"), scores.order("lowest"))
    assert recorded.provenance["fitted gradients"] == 512
    assert recorded.provenance["noise seed"] == recorded.provenance["encoder seed"] == 0
    assert recorded.provenance["command"].endswith("--seed 0 --split train")


def test_the_encoders_seed_is_not_taken_for_the_noises(places, tmp_path):
    """An encoder of seed 1 is scored with noise of seed 0, and the record says both."""
    first = results.folder_of("tiny", "simclr", 0, places[0])
    second = results.folder_of("tiny", "simclr", 1, tmp_path)
    shutil.copytree(first, second)
    recording.score_and_record("simclr", "tiny", 1, "train", progress=False, root=tmp_path)
    recorded = results.load_scores("tiny", "simclr", 1, "train", tmp_path)
    origin = recorded.provenance
    assert (origin["noise seed"], origin["encoder seed"]) == (0, 1)
    assert "seed" not in origin
    encoder = results.load_encoder("tiny", "simclr", 1, tmp_path)
    images = recording.data_for("tiny", "train")
    again = recording.score_images(encoder, images, progress=False, seed=origin["noise seed"])
    np.testing.assert_array_equal(recorded.order("lowest"), again.order("lowest"))


def test_scores_that_cannot_be_right_are_not_recorded(places, monkeypatch, capsys):
    images = recording.data_for("tiny", "train")
    values = -np.ones(len(images))
    values[3] = np.nan
    bad = Scores(values, np.ones(len(values)), np.arange(len(values)), images.names, {})
    monkeypatch.setattr(recording, "score_images", lambda *args, **how: bad)
    before = (results.folder_of("tiny", "simclr", 0, places[0]) / "scores-train.npz").read_bytes()
    assert main(["score", "simclr", *places[2]]) == 1
    assert "not all are finite" in capsys.readouterr().err
    after = results.folder_of("tiny", "simclr", 0, places[0]) / "scores-train.npz"
    assert after.read_bytes() == before


def test_scoring_before_training_says_what_to_run(tmp_path, capsys):
    assert main(["score", "byol", "--profile", "tiny", "--results", str(tmp_path)]) == 1
    assert "first run influence-lab pretrain byol --profile tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["pretrain", "simclr", "--device", "foo"], "is not a device; use cpu or cuda"),
        (["pretrain", "simclr", "--seed", "9" * 20], "is above 1,000,000,000"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_any_work(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA card is there")
def test_a_card_that_is_not_there_is_said(capsys):
    assert main(["score", "simclr", "--device", "cuda"]) == 1
    assert "PyTorch finds no CUDA card; use cpu" in capsys.readouterr().err


def test_pictures_have_a_format_and_a_file_each(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("influence_lab.experiments.catalogue.reproduce", None)
    assert main(["reproduce", "fig-2", "--out", str(tmp_path / "q.xyz")]) == 1
    assert "q.xyz': not a picture format; use one of" in capsys.readouterr().err
    assert main(["reproduce", "all", "--out", str(tmp_path / "one.svg")]) == 1
    assert "--out names the file of a single picture" in capsys.readouterr().err


def test_reproduce_makes_what_is_missing_and_draws(places, tmp_path, monkeypatch):
    root, _, where = places
    trained = []

    def fake(method, profile, seed, *rest, **how):
        trained.append(method)
        place = results.folder_of(profile, method, seed, root)
        torch.manual_seed(len(trained))
        results.save_encoder(cifar_resnet18(4), place / "encoder.safetensors")

    monkeypatch.setattr(recording, "pretrain_and_record", fake)
    out = tmp_path / "figure.svg"
    assert main(["reproduce", "fig-9", "--out", str(out), *where]) == 0
    assert trained == ["byol", "barlow", "supervised"]
    assert out.read_text().lstrip().startswith("<?xml")
    assert distributions.recorded("tiny", "train", 0, root)["byol"] is not None


@pytest.mark.parametrize("command", [[], ["pretrain"], ["score"], ["reproduce"]])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert not command or "example: influence-lab" in shown


def test_every_tracked_record_is_whole():
    """Each folder of book/results has a run, its encoder and scores that belong together."""
    for path in sorted(results.results_root().glob("*/*/run.json")):
        record = json.loads(path.read_text())
        profile, run = path.parent.parent.name, path.parent.name
        method, seed = run.rsplit("-", 1)
        settings = record["settings"]
        assert (settings["profile"], settings["method"]) == (profile, method)
        assert len(record["epochs"]) == settings["epochs"]
        # Where a setting has come or gone since, the others are still those of the code.
        now = asdict(settings_for(method, profile))
        assert {k: v for k, v in settings.items() if k in now}.items() <= now.items()
        encoder = results.load_encoder(profile, method, int(seed))
        # The weights of a second seed are tracked at profile tiny alone, for their size.
        if encoder is not None or seed == "0" or profile == "tiny":
            assert encoder.width == settings["width"]
        for split in ("test", "train"):
            scores = results.load_scores(profile, method, int(seed), split)
            if scores is not None:
                n = 512 if profile == "tiny" else {"test": 10_000, "train": 50_000}[split]
                assert sorted(scores.rank) == list(range(n))
                assert (np.diff(scores.quantiles) >= 0).all()
                assert scores.quantiles[0] >= 0
                origin = scores.provenance
                assert (origin["noise seed"], origin["encoder seed"]) == (0, int(seed))


def test_the_mean_recorded_score_is_the_recorded_effective_dimension(places):
    recorded = results.load_scores("tiny", "simclr", 0, "train", places[0])
    assert recorded.mean == pytest.approx(distributions.effective_dimension(recorded), rel=1e-4)


def test_the_largest_recorded_profile(places, tmp_path):
    assert distributions.largest_profile("train", 0, places[0]) == "tiny"
    with pytest.raises(InfluenceError, match="influence-lab reproduce fig-9"):
        distributions.largest_profile("train", 0, tmp_path)


def test_baselines_are_recorded(places, capsys):
    root, _, where = places
    assert main(["reproduce", "baselines", *where]) == 0
    record = json.loads((root / "tiny" / "baselines.json").read_text())
    assert 0.15 < record["untrained encoder"] < 0.9
    assert f"{record['raw pixels']:.2%}" in capsys.readouterr().out
