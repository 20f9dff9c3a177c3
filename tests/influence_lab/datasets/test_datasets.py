"""Data sets: planted truth, and CIFAR-10 in exactly its on-disk forms."""

import json
import pickle
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin

from influence_lab.datasets import data_root, load, load_cifar10, make_scenes
from influence_lab.datasets.scenes import CLASSES, KINDS, SHARES
from influence_lab.records.results import results_root
from influence_ssl import InfluenceError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def batches(tmp_path):
    """CIFAR-10 as torchvision unpacks it, four images a batch."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        content = {
            "batch_label": name,
            "labels": RNG.integers(10, size=4).tolist(),
            "data": RNG.integers(256, size=(4, 3072), dtype=np.uint8),
            "filenames": [f"{name}_{i}.png" for i in range(4)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    """CIFAR-10 as a folder of images, two classes, lossless."""
    for split in ("train", "test"):
        for label in ("cat", "bird"):
            place = tmp_path / "cifar10" / split / label
            place.mkdir(parents=True)
            for i in range(3):
                pixels = RNG.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i:04d}.png")
    return tmp_path


def test_batches_are_read_as_torchvision_reads_them(batches):
    ours = load_cifar10("train", batches)
    assert ours.images.shape == (20, 32, 32, 3)
    with (batches / "cifar-10-batches-py" / "data_batch_2").open("rb") as file:
        second = pickle.load(file, encoding="latin1")
    # The first 1,024 bytes of a row are the red channel, row by row.
    red = second["data"][1, :1024].reshape(32, 32)
    np.testing.assert_array_equal(ours.images[5][:, :, 0], red)
    assert ours.labels[4:8].tolist() == second["labels"]
    assert ours.names[5] == "data_batch_2_1.png"
    assert ours.classes[3] == "cat"
    assert ours.name == "CIFAR-10"
    assert len(load_cifar10("test", batches)) == 4


def test_a_pickle_that_runs_code_is_refused(batches, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InfluenceError, match=r"test_batch: not a CIFAR-10 batch .*print"):
        load_cifar10("test", batches)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02}q\x00.", pickle.dumps({"data": np.zeros((2, 7)), "labels": [1, 2]})]
)
def test_a_broken_batch_is_named(batches, content):
    (batches / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(InfluenceError, match=r"test_batch: not a CIFAR-10 batch"):
        load_cifar10("test", batches)


def test_a_missing_batch_is_named(batches):
    (batches / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(InfluenceError, match=r"data_batch_3: cannot be read .*INFLUENCE_SSL_DATA"):
        load_cifar10("train", batches)


def test_folder_is_read_in_order_and_cached(folder, tmp_path):
    first = load_cifar10("train", folder)
    assert first.classes == ("bird", "cat")
    assert first.names[:2] == ("bird/0000.png", "bird/0001.png")
    assert first.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.asarray(Image.open(folder / "cifar10/train/cat/0002.png"))
    np.testing.assert_array_equal(first.images[5], expected)
    (cache,) = (tmp_path / "cache").rglob("*.npy")
    again = load_cifar10("train", folder)
    assert again.digest == first.digest
    # A changed file is read again, not taken from the cache.
    Image.new("RGB", (32, 32), (9, 9, 9)).save(folder / "cifar10/train/cat/0002.png")
    assert load_cifar10("train", folder).images[5].max() == 9
    assert cache.exists()


def test_the_name_says_whether_pixels_are_the_published_ones(folder):
    assert load_cifar10("train", folder).name == "CIFAR-10"
    place = folder / "cifar10/train/cat"
    Image.open(place / "0000.png").save(place / "0000.jpg")
    (place / "0000.png").unlink()
    copies = load_cifar10("train", folder)
    assert copies.name == "CIFAR-10 (JPEG copies)"
    assert copies.subset(np.arange(2)).name == copies.name


def test_every_record_of_these_copies_says_so():
    """Whatever names the hash of the copies that the encoders were trained on names them."""
    known = json.loads((results_root() / "cpu/simclr-0/run.json").read_text())["provenance"]
    assert known["data"].startswith("CIFAR-10 (JPEG copies) train")
    found = 0
    for path in sorted(results_root().rglob("*.json")):
        for origin in provenances(json.loads(path.read_text())):
            assert "cifar10" not in origin["data"], path
            if origin["data_sha256"] == known["data_sha256"]:
                found += 1
                assert "CIFAR-10 (JPEG copies) train" in origin["data"], path
    assert found > 10


def provenances(value):
    """All dictionaries, at any depth, that have a data set's name and its hash."""
    if isinstance(value, dict):
        if {"data", "data_sha256"} <= value.keys():
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from provenances(inner)


def test_grey_and_rgba_become_rgb(folder):
    Image.new("L", (32, 32), 70).save(folder / "cifar10/train/bird/0000.png")
    Image.new("RGBA", (32, 32), (1, 2, 3, 4)).save(folder / "cifar10/train/bird/0001.png")
    images = load_cifar10("train", folder).images
    assert images[0, 0, 0].tolist() == [70, 70, 70]
    # Nearly transparent, so nearly the mid-grey that it stands on: 128 + (1 - 128) * 4 / 255.
    assert images[1, 0, 0].tolist() == [126, 126, 126]


def test_a_truncated_image_is_named(folder):
    path = folder / "cifar10/train/cat/0001.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InfluenceError, match=r"cat/0001.png: not a readable image"):
        load_cifar10("train", folder)


def test_an_image_of_another_size_is_named(folder):
    Image.new("RGB", (33, 32)).save(folder / "cifar10/train/cat/0001.png")
    with pytest.raises(InfluenceError, match=r"cat/0001.png: 33 x 32 pixels"):
        load_cifar10("train", folder)


def test_wrong_folders_say_what_to_do(tmp_path):
    with pytest.raises(InfluenceError, match=r"no CIFAR-10 found; .*INFLUENCE_SSL_DATA"):
        load_cifar10("train", tmp_path)
    (tmp_path / "cifar10" / "train").mkdir(parents=True)
    with pytest.raises(InfluenceError, match="no class folders"):
        load_cifar10("train", tmp_path)
    (tmp_path / "cifar10" / "train" / "cat").mkdir()
    with pytest.raises(InfluenceError, match=r"no \.jpg or \.png"):
        load_cifar10("train", tmp_path)


def test_unknown_names_and_splits():
    with pytest.raises(InfluenceError, match="scenes, digits, cifar10"):
        load("mnist")
    with pytest.raises(InfluenceError, match="split='val'"):
        load("digits", "val")
    with pytest.raises(InfluenceError, match="one split"):
        load("digits", "test")


def test_data_root_follows_the_environment(monkeypatch):
    monkeypatch.setenv("INFLUENCE_SSL_DATA", "/elsewhere")
    assert str(data_root()) == "/elsewhere"
    monkeypatch.delenv("INFLUENCE_SSL_DATA")
    assert str(data_root()) == "data"


def test_scenes_hold_what_was_planted():
    scenes = make_scenes(400, seed=3)
    pixels = scenes.images.images.astype(int)
    for name, share in SHARES.items():
        assert scenes.is_kind(name).sum() == round(400 * share)
    exact = np.flatnonzero(scenes.is_kind("exact duplicate"))
    near = np.flatnonzero(scenes.is_kind("near duplicate"))
    np.testing.assert_array_equal(pixels[exact], pixels[scenes.source[exact]])
    sources = scenes.source[np.concatenate([exact, near])]
    assert len(set(sources)) == len(sources)
    assert (scenes.kind[sources] == KINDS.index("ordinary")).all()
    # A near duplicate is nearer to its source than to any other scene that is not its copy.
    for i in near:
        distance = abs(pixels[i] - pixels).mean((1, 2, 3))
        distance[i] = np.inf
        assert distance.argmin() == scenes.source[i]
        assert distance.min() > 0
    # A uniform scene has two colours: background and shape.
    for i in np.flatnonzero(scenes.is_kind("uniform")):
        assert len(np.unique(pixels[i].reshape(-1, 3), axis=0)) == 2
    night = scenes.group == 1
    assert pixels[night].mean() < 0.6 * pixels[~night].mean()
    assert 0.1 < night.mean() < 0.2
    assert set(scenes.images.labels) == set(range(len(CLASSES)))


def test_scenes_depend_on_the_seed_alone():
    assert make_scenes(60, 1).images.digest == make_scenes(60, 1).images.digest
    assert make_scenes(60, 1).images.digest != make_scenes(60, 2).images.digest
    with pytest.raises(InfluenceError, match="n=5"):
        make_scenes(5)


def test_digits_are_scikit_learns():
    digits = load("digits")
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.tensor().dtype == torch.uint8
    assert int(digits.images.max()) == 255
    image, label = digits[3]
    assert image.shape == (1, 8, 8)
    assert image.max() <= 1
    assert label == 3


@pytest.mark.skipif(not (data_root() / "cifar10").is_dir(), reason="no real CIFAR-10 under data/")
def test_real_cifar10_is_whole(monkeypatch):
    monkeypatch.undo()
    for split, count in (("train", 5000), ("test", 1000)):
        images = load("cifar10", split)
        assert np.bincount(images.labels).tolist() == [count] * 10
        assert images.classes[0] == "airplane"
        # The mean and deviation that every publication normalises with.
        scaled = images.images[::10].reshape(-1, 3) / 255
        np.testing.assert_allclose(scaled.mean(0), (0.4914, 0.4822, 0.4465), atol=0.006)
        np.testing.assert_allclose(scaled.std(0), (0.2470, 0.2435, 0.2616), atol=0.006)


@pytest.mark.skipif(not (data_root() / "cifar10").is_dir(), reason="no real CIFAR-10 under data/")
def test_the_jpeg_copies_are_of_the_stated_quality_and_sampling(monkeypatch):
    monkeypatch.undo()
    images, folder = load("cifar10", "test"), data_root() / "cifar10" / "test"
    if not (folder / images.names[0]).is_file():
        pytest.skip("CIFAR-10 is here in torchvision's format")
    file = BytesIO()
    Image.fromarray(images.images[0]).save(file, "JPEG", quality=75)
    tables = Image.open(file).quantization
    assert images.name == "CIFAR-10 (JPEG copies)"
    assert (np.diff(images.labels) >= 0).all()
    for name in images.names[::500]:
        with Image.open(folder / name) as copy:
            assert copy.quantization == tables
            assert JpegImagePlugin.get_sampling(copy) == 2  # 4:2:0
