"""The score explorer: its numbers by other means, and the sheet of its images."""

import base64
import json
import shutil

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from influence_lab.cli import main
from influence_lab.datasets.base import data_root
from influence_lab.experiments import explorer
from influence_lab.pretrain.probes import extract
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_lab.records.thumbnails import load_sheet


def spread(pixels):
    """Of the outer three pixels on every side, channel by channel."""
    found = []
    for image in pixels / 255.0:
        edge = [
            image[y, x] for y in range(32) for x in range(32) if not (2 < y < 29 and 2 < x < 29)
        ]
        found.append(np.sqrt(np.array(edge).var(0).mean()))
    return np.array(found)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    place, tracked = (results.folder_of("tiny", "simclr", 0, r) for r in (root, None))
    place.mkdir(parents=True)
    for name in ("encoder.safetensors", "vectors.npz"):
        shutil.copy(tracked / name, place)
    where = ["--results", str(root), "--out", str(root / "f.svg")]
    assert main(["reproduce", "explorer", "--profile", "tiny", *where]) == 0
    return root, results.load_record("tiny", "explorer", root)


def test_the_numbers_by_other_means(made):
    root, record = made
    images = data_for("tiny", "train")
    encoder = results.load_encoder("tiny", "simclr", 0)
    z = extract(encoder, images.tensor()).double()
    z = torch.nn.functional.normalize(z, dim=1).numpy()
    found = explorer.values("tiny", record, "simclr", root)
    # scikit-learn counts the image itself, at distance 0.
    apart, _ = NearestNeighbors(n_neighbors=11, metric="cosine").fit(z).kneighbors(z)
    np.testing.assert_allclose(found["distance"], apart.sum(1) / 10, atol=1e-5)
    np.testing.assert_allclose(found["border"][:50], spread(images.images[:50]), rtol=1e-6)
    np.testing.assert_array_equal(explorer.load("tiny", root).label, images.labels)
    for name, (value, low, high) in record["correlations"]["simclr"].items():
        assert value == pytest.approx(spearmanr(found["score"], found[name]).statistic, abs=1e-4)
        assert low <= value <= high


def test_what_the_page_is_given_is_what_is_recorded():
    profile, record = results.largest_record("explorer")
    page = json.loads(json.dumps(explorer.page_data(profile, record)))
    fixed = np.sort(np.random.default_rng(0).permutation(record["of"])[:5000])
    shown = np.sort(np.random.default_rng(0).permutation(record["of"])[:2000])
    assert list(page["methods"]) == record["methods"]
    assert len(record["methods"]) == 4
    for method, one in page["methods"].items():
        with np.load(results.folder_of(profile, method, 0) / "vectors.npz") as file:
            codes, ends = file["codes"], file["ends"]
            names = [json.loads(name) for name in json.loads(str(file["written"]))["vectors"]]
        for quantity in ("score", "loss", "gradient norm"):
            wanted = {
                "quantity": quantity,
                "perturbation": {"kind": "GaussianNoise", "mean": 0.05, "std": 0.2},
                "noise seed": 0,
            }
            k = names.index(wanted)
            low, high = ends[k]
            recorded = np.exp(low + (codes[k] - 1.0) * (high - low) / 4094)[np.isin(fixed, shown)]
            given = np.frombuffer(base64.b64decode(one["values"][quantity]), "<f4")
            np.testing.assert_allclose(given, recorded, rtol=1e-6)
    np.testing.assert_array_equal(explorer.load(profile).image, shown)


def test_the_tracked_sheet_holds_the_images_in_their_order():
    profile, record = results.largest_record("explorer")
    path = results.results_root() / profile / "explorer.jpg"
    assert path.stat().st_size < 1_500_000
    pictures = load_sheet(path, explorer.COLUMNS)
    assert len(pictures) == record["images"] == 2000
    # JPEG changes single pixels, and so a border's spread by little.
    off = spread(pictures[::10]) - explorer.load(profile).border[::10]
    assert abs(off).max() < 0.02


@pytest.mark.skipif(not (data_root() / "cifar10").is_dir(), reason="no real CIFAR-10 under data/")
def test_the_tracked_sheet_is_of_the_recorded_images():
    profile, record = results.largest_record("explorer")
    images, explored = data_for(profile, "train"), explorer.load(profile)
    if images.digest != record["provenance"]["data_sha256"]:
        pytest.skip("CIFAR-10 is here in another form than the recorded one")
    part = images.subset(explored.image)
    np.testing.assert_array_equal(explored.label, part.labels)
    pictures = load_sheet(results.results_root() / profile / "explorer.jpg", explorer.COLUMNS)
    assert abs(pictures.astype(float) - part.images).mean((1, 2, 3)).max() < 8


def test_without_an_encoder_the_command_says_what_to_run(tmp_path, capsys):
    assert main(["reproduce", "explorer", "--profile", "tiny", "--results", str(tmp_path)]) == 1
    assert "first run influence-lab pretrain simclr --profile tiny" in capsys.readouterr().err
