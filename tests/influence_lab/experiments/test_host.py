"""The record of what the processor feeds to a device."""

import json
import time

import pytest
import torch

from influence_lab.cli import main
from influence_lab.experiments import host
from influence_ssl import GaussianNoise, Identity, InfluenceScorer
from influence_ssl.errors import InfluenceOSError
from influence_ssl.files.images import ImageFiles


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_takes_at_least_the_card_s_time(workers):
    x = torch.rand(6, 3, 32, 32)
    assert host.seconds_of(x, 32, workers, card=0.02) > 0.02  # seconds per image


def test_the_simulated_card_computes_one_batch_after_the_other_while_the_processor_goes_on():
    device, begin = host.Device(), time.perf_counter()
    taken = []
    for _ in range(3):
        device.give(0.1)
        taken.append(time.perf_counter() - begin)
    device.finish()
    assert taken[1] >= 0.1  # the first batch is computed, the second begins
    assert taken[2] >= 0.2
    assert time.perf_counter() - begin >= 0.3
    time.sleep(0.1)  # which the card does not make up for
    device.give(0.1)
    device.finish()
    assert time.perf_counter() - begin >= 0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_the_simulated_card_draws_the_noise_of_every_image_once(workers, monkeypatch):
    drawn = []

    def noted(self, shape, index, draw, seed, pinned=False):
        drawn.extend(index.tolist())
        return self

    monkeypatch.setattr(GaussianNoise, "ahead", noted)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 1))
    x = torch.rand(40, 3, 4, 4)
    InfluenceScorer(
        encoder, host.Card(), Identity(), batch_size=8, workers=workers, progress=False
    ).score(x)
    assert set(drawn) == set(range(40))
    of_later = [i for i in drawn if i >= 16]  # the first images are also used for checks
    assert sorted(of_later) == list(range(16, 40))


def test_processes_share_the_images_and_make_a_pass_whenever_they_are_asked(tmp_path):
    with host.processes(tmp_path, "JPEG", 32, 12, cores=2) as pipes:
        assert sorted(len(list(path.iterdir())) for path in tmp_path.iterdir()) == [6, 6]
        assert all(host.together(pipes, 12) > 0 for _ in range(2))
    with pytest.raises(OSError, match=r"closed|[Bb]roken|reset"):
        host.together(pipes, 12)


@pytest.mark.parametrize("source", host.SOURCES)
def test_only_what_is_kept_is_not_read_again(source, tmp_path, monkeypatch):
    images = host.prepared(tmp_path / "own", source, 32, 40)
    reads = []
    monkeypatch.setattr(ImageFiles, "_read", lambda self, k: reads.append(k) or b"")
    if source == "JPEG, read again":
        with pytest.raises(InfluenceOSError, match=r"00000\.jpg"):
            host.seconds_of(images, 32, 0)
        assert reads
    else:
        assert host.seconds_of(images, 32, 0) > 0
        assert not reads


def test_reproduce_records_images_per_second(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host, "IMAGES", {"tiny": {32: (12, 6)}})
    monkeypatch.setattr(host, "SMALL", {"tiny": 4})
    assert main(["reproduce", "host", "--profile", "tiny", "--results", str(tmp_path)]) == 0
    assert "times the slower of processor and simulated card" in capsys.readouterr().out
    record = json.loads((tmp_path / "tiny" / "host.json").read_text())
    assert [(name, one["images"]) for name, one in record["feeds"].items()] == [
        ("32 tensor", 12), ("32 JPEG", 6), ("32 JPEG, read again", 6),
    ]  # fmt: skip
    assert record["feeds"]["32 JPEG"].pop("first") > 0
    for one in record["feeds"].values():
        assert one.keys() == {"images", "alone", "threads", "cores", "together", "passes"}
        assert min(one[name] for name in ("alone", "threads", "cores", "together")) > 0
        assert one["passes"].keys() == {"0.5", "1.0", "2.0", "H100"}
    assert record["small"]["images"] == 4
    assert record["small"]["ratio"] > 0
