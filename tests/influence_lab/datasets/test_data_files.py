"""CIFAR-100, FairFace and folders in exactly their on-disk forms; stand-ins; downloads."""

import csv
import hashlib
import pickle
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import faces
import numpy as np
import pytest
import torchvision
from PIL import Image

from influence_lab.cli import main
from influence_lab.datasets import (
    download,
    load,
    load_cifar10,
    load_cifar100,
    load_folder,
    make_scenes,
    standin_cifar100,
    standin_fairface,
)
from influence_lab.datasets import standins as standins_module
from influence_lab.datasets.fairface import COLUMNS, FOLDERS, VALUES, load_fairface
from influence_ssl import InfluenceError
from influence_ssl.files.decoding import BACKGROUND

RNG = np.random.default_rng(0)
NAMES = [f"class_{i:03d}" for i in range(100)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("INFLUENCE_SSL_DATA", str(tmp_path))


def write_cifar100(folder):
    """As torchvision unpacks it: pickles of protocol 2 with both kinds of labels."""
    folder.mkdir(parents=True)
    for name, n in (("train", 30), ("test", 7)):
        fine = RNG.integers(100, size=n)
        content = {
            "filenames": [f"{name}_{i}.png" for i in range(n)],
            "batch_label": f"{name} batch 1 of 1",
            "fine_labels": fine.tolist(),
            "coarse_labels": (fine // 5).tolist(),
            "data": RNG.integers(256, size=(n, 3072), dtype=np.uint8),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    meta = {
        "fine_label_names": NAMES,
        "coarse_label_names": [f"coarse_{i}" for i in range(20)],
    }
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


def checksums(folder, monkeypatch):
    """Tell torchvision the checksums of the fixture's files."""
    kind = torchvision.datasets.CIFAR100

    def md5(path):
        return hashlib.md5(path.read_bytes()).hexdigest()

    monkeypatch.setattr(kind, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(kind, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / "meta")})


def test_cifar100_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    checksums(write_cifar100(tmp_path / "cifar-100-python"), monkeypatch)
    for split in ("train", "test"):
        theirs = torchvision.datasets.CIFAR100(tmp_path, train=split == "train")
        ours = load("cifar100", split)
        np.testing.assert_array_equal(ours.images, theirs.data)
        assert ours.labels.tolist() == theirs.targets
        assert list(ours.classes) == theirs.classes
    assert ours.names[2] == "test_2.png"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("meta", None, "meta: cannot be read .*download cifar100"),
        ("meta", pickle.dumps(["a"]), "no list fine_label_names"),
        ("meta", b"text", "not a CIFAR-100 list of classes"),
        ("train", pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [1]}),
         "not a CIFAR-100 batch .*fine_labels"),
        ("train", pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100]}),
         "labels are not 0 to 99"),
        ("train", pickle.dumps(print), "it asks for builtins.print"),
    ],
)  # fmt: skip
def test_broken_cifar100_is_named(tmp_path, file, content, says):
    path = write_cifar100(tmp_path / "cifar-100-python") / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(InfluenceError, match=says):
        load_cifar100("train", tmp_path)


def test_cifar100_as_a_folder(tmp_path):
    for name in ("apple", "aquarium_fish"):
        place = tmp_path / "cifar100" / "test" / name
        place.mkdir(parents=True)
        for i in range(2):
            pixels = RNG.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")
    found = load_cifar100("test", tmp_path)
    assert found.classes == ("apple", "aquarium_fish")
    assert found.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(found.images[3], pixels)


@pytest.fixture
def server():
    """Serves a folder on this machine; returns its address."""
    made = []

    def serve(folder):
        handler = partial(Quiet, directory=str(folder))
        made.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        Thread(target=made[0].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{made[0].server_port}"

    yield serve
    for one in made:
        one.shutdown()
        one.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_a_download_is_torchvisions(tmp_path, monkeypatch, capsys, server):
    source = write_cifar100(tmp_path / "source" / "cifar-100-python")
    packed = tmp_path / "source" / "cifar-100-python.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(source, "cifar-100-python")
    checksums(source, monkeypatch)
    kind = torchvision.datasets.CIFAR100
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(packed.read_bytes()).hexdigest())
    monkeypatch.setattr(kind, "url", f"{server(packed.parent)}/{packed.name}")
    monkeypatch.setenv("INFLUENCE_SSL_DATA", str(tmp_path / "data"))
    assert main(["download", "cifar100"]) == 0
    assert len(load("cifar100", "train")) == 30
    assert main(["download", "cifar100"]) == 0
    assert "is already in" in capsys.readouterr().out.splitlines()[-1]
    # An unpacking that was interrupted is no data set, and is finished.
    (tmp_path / "data" / "cifar-100-python" / "test").unlink()
    assert main(["download", "cifar100"]) == 0
    assert "already" not in capsys.readouterr().out
    assert len(load("cifar100", "test")) == 7
    # A changed archive is refused.
    monkeypatch.setattr(kind, "tgz_md5", "0" * 32)
    with pytest.raises(InfluenceError, match="cannot be downloaded"):
        download("cifar100", tmp_path / "other")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_no_network_is_one_line(name, tmp_path, monkeypatch, capsys):
    kind = getattr(torchvision.datasets, name.upper())
    monkeypatch.setattr(kind, "url", "http://127.0.0.1:9/none.tar.gz")
    assert main(["download", name]) == 1
    line = capsys.readouterr().err.splitlines()
    assert len(line) == 1
    assert "127.0.0.1:9" in line[0]
    assert f"get {kind.filename} and unpack it in {tmp_path}" in line[0]


def test_absent_data_name_the_command(tmp_path):
    for name in ("cifar10", "cifar100"):
        with pytest.raises(InfluenceError, match=f"influence-lab download {name} fetches it"):
            load(name)


def test_fairface_in_its_own_format(tmp_path, capsys):
    folder = faces.write(tmp_path, 30)
    faces.write(tmp_path / "other", 3)
    found = load_fairface(size=16)
    assert found.images.images.shape == (30, 16, 16, 3)
    with (tmp_path / "fairface_label_train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for column in ("race", "gender", "age"):
        assert found.attributes[column].tolist() == [row[column] for row in rows]
    assert found.images.names == tuple(row["file"] for row in rows)
    assert [found.images.classes[i] for i in found.images.labels] == [r["race"] for r in rows]
    # Torchvision's resizing of the same picture is an independent reference.
    picture = Image.open(folder / "train" / "5.jpg").convert("RGB")
    reference = torchvision.transforms.Resize(16, antialias=True)(picture)
    off = abs(found.images.images[4].astype(int) - np.asarray(reference).astype(int))
    assert off.max() <= 1
    assert not found.missing
    assert not found.unreadable
    assert capsys.readouterr().err == ""
    assert found.images.name == "FairFace (padding 0.25, 16 pixels)"
    # The cache gives the same; a changed file is read again.
    assert load_fairface(size=16).images.digest == found.images.digest
    Image.new("RGB", (40, 40), (9, 9, 9)).save(folder / "train" / "5.jpg")
    assert load_fairface(size=16).images.images[4].max() < 12


def test_missing_and_unreadable_faces_are_counted_and_named(tmp_path, capsys):
    folder = faces.write(tmp_path / "fairface", 30)
    (folder / "train" / "4.jpg").unlink()
    for k, size in ((7, 0), (8, 300)):
        path = folder / "train" / f"{k}.jpg"
        path.write_bytes(path.read_bytes()[:size])
    for _ in range(2):  # the second time from the cache
        found = load_fairface(size=16)
        assert found.missing == ("train/4.jpg",)
        assert [name for name, _ in found.unreadable] == ["train/7.jpg", "train/8.jpg"]
        line = capsys.readouterr().err.splitlines()[-1]
        assert "of 30 images 1 missing (train/4.jpg) and 2 unreadable (train/7.jpg: " in line
        assert len(found.images) == 27
        # What is left still belongs together.
        numbers = [int(name[6:-4]) for name in found.images.names]
        assert found.attributes["race"].tolist() == [VALUES["race"][k % 7] for k in numbers]
        dark = found.images.images.mean((1, 2, 3)) < 120
        np.testing.assert_array_equal(dark, found.attributes["race"] == "Black")


def test_grey_and_rgba_faces_become_rgb(tmp_path):
    folder = faces.write(tmp_path, 4)
    Image.new("L", (50, 30), 70).save(folder / "train" / "1.jpg", quality=100)
    Image.new("RGBA", (30, 50), (10, 20, 30, 4)).save(folder / "train" / "2.jpg", "PNG")
    images = load_fairface(size=20).images.images
    assert images.shape == (4, 20, 20, 3)
    assert images[0, 3, 3].tolist() == [70, 70, 70]
    # Nearly transparent, and so nearly the ground.
    expected = (4 * np.array([10, 20, 30]) + 251 * np.array(BACKGROUND)) / 255
    assert images[1, 3, 3].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("padding", "written", "name"),
    [(1.25, 1.25, "padding 1.25"), (0.25, None, "padding not known")],
)
def test_padding_variants(tmp_path, padding, written, name):
    faces.write(tmp_path, 8, written, split="val")
    found = load_fairface("test", 8, padding)
    assert len(found.images) == 8
    assert name in found.images.name


def test_a_folder_within_the_folder(tmp_path):
    folder = faces.write(tmp_path, 4)
    (folder / folder.name).mkdir()
    (folder / "train").rename(folder / folder.name / "train")
    assert len(load_fairface(size=8).images) == 4


def edit(column, text):
    """Replace a column of line 3, or the whole header with ``column=None``."""

    def change(root):
        path = root / "fairface_label_train.csv"
        lines = path.read_text().splitlines()
        if column is None:
            lines[0] = text
        else:
            cells = lines[2].split(",")
            cells[COLUMNS.index(column)] = text
            lines[2] = ",".join(cells)
        path.write_text("\n".join(lines))

    return change


def no_images(root):
    for path in (root / FOLDERS[0.25] / "train").iterdir():
        path.unlink()


def garbage(root):
    for path in (root / FOLDERS[0.25] / "train").iterdir():
        path.write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda root: (root / "fairface_label_train.csv").unlink(), "no fairface_label_train.csv"),
        (lambda root: (root / FOLDERS[0.25]).rename(root / FOLDERS[1.25]),
         "no folder .*there is fairface-img-margin125.*, of another padding"),
        (no_images, r"none of the 6 images .* is there \(train/1.jpg, …\)"),
        (garbage, "none of its 6 images can be read; the first: train/1.jpg: not an image"),
        (edit(None, "file,age,sex"), "its columns are file, age, sex where FairFace has"),
        (edit("age", "Mar-09"), "line 3: age is 'Mar-09', not one of 0-2, 3-9.*spreadsheet"),
        (edit("race", "Asian"), "line 3: race is 'Asian'"),
        (edit("file", "../secret.jpg"), "line 3: file is '../secret.jpg'"),
        (lambda root: (root / "fairface_label_train.csv").write_bytes(b"\xff\xfe\x00"),
         "not a CSV|its columns are"),
        (lambda root: (root / "fairface_label_train.csv").write_text(",".join(COLUMNS)), "no rows"),
    ],
)  # fmt: skip
def test_what_is_no_fairface_is_refused_in_one_line(tmp_path, change, says):
    faces.write(tmp_path, 6)
    change(tmp_path)
    with pytest.raises(InfluenceError, match=says) as caught:
        load_fairface(size=8)
    assert "\n" not in str(caught.value)


def test_unknown_variants_are_refused(tmp_path):
    for how in ({"padding": 0.5}, {"size": 0}, {"split": "val"}):
        with pytest.raises(InfluenceError, match="expected 'train' or 'test'"):
            load_fairface(**how)


def test_any_folder_or_zip(tmp_path, capsys):
    root = tmp_path / "mine"
    for name in ("b/1.png", "a/2.png", "a/3.png", "alone.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(256, size=(12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    (root / "a" / "4.png").write_bytes(b"broken")
    (root / "notes.txt").write_text("no image")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(root))
    for source in (root, tmp_path / "mine.zip"):
        found = load_folder(source)
        assert found.images.names == ("a/2.png", "a/3.png", "alone.png", "b/1.png")
        assert found.images.classes == ("", "a", "b")
        assert found.attributes["class"].tolist() == ["a", "a", "", "b"]
        np.testing.assert_array_equal(found.images.images[2], pixels)
        assert found.unreadable == (("a/4.png", "not an image of a known format"),)
        assert "1 unreadable (a/4.png: not an image" in capsys.readouterr().err


def test_folders_of_mixed_sizes_need_a_size(tmp_path):
    Image.new("RGB", (12, 20), (200, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (12, 12), 5).save(tmp_path / "b.png")
    with pytest.raises(InfluenceError, match=r"mixed sizes .*'a.png' is 12 x 20"):
        load_folder(tmp_path)
    found = load_folder(tmp_path, size=6)
    assert found.images.images.shape == (2, 6, 6, 3)
    assert found.images.images[1].max() == 5
    with pytest.raises(InfluenceError, match="no such folder"):
        load_folder(tmp_path / "none")


def cifar10(root, n=12):
    """A folder in CIFAR-10's form, whose images fall into ten plain colours a class."""
    for split, count in (("train", n), ("test", 3)):
        for label in ("bird", "cat"):
            place = root / "cifar10" / split / label
            place.mkdir(parents=True)
            for i in range(count):
                grey = 20 * (i % 10) + 10 + (5 if label == "cat" else 0)
                Image.new("RGB", (32, 32), (grey, grey, grey)).save(place / f"{i:02}.png")


def test_the_stand_in_for_cifar100_refines_the_classes(tmp_path):
    cifar10(tmp_path)
    train, test = (standin_cifar100(split) for split in ("train", "test"))
    assert "a stand-in for CIFAR-100" in train.name
    assert train.classes == tuple(f"{name} {k}" for name in ("bird", "cat") for k in range(10))
    original = load_cifar10("train")
    np.testing.assert_array_equal(train.images, original.images)
    np.testing.assert_array_equal(train.labels // 10, original.labels)
    # Ten colours a class: images of one colour share a pseudo-class, others do not.
    assert train.labels[:12].tolist() == [*range(10), 0, 1]
    assert test.labels.tolist() == [0, 1, 2, 10, 11, 12]
    assert load("cifar100-standin").digest == train.digest


def test_too_few_images_cannot_be_refined(tmp_path):
    cifar10(tmp_path, n=4)
    with pytest.raises(InfluenceError, match="4 training images of class 'bird'"):
        standin_cifar100("train")


def test_the_descriptor_is_the_mean_of_cells():
    pixels = make_scenes(20).images.images
    found = standins_module.descriptor(pixels)
    assert found.shape == (20, 48)
    cell = pixels[3, 8:16, 24:32].mean((0, 1)) / 255
    np.testing.assert_allclose(found[3].reshape(4, 4, 3)[1, 3], cell)


def test_the_stand_in_for_fairface_is_scenes():
    found = standin_fairface(100)
    scenes = make_scenes(100)
    assert found.stand_in
    assert found.images.digest == scenes.images.digest
    np.testing.assert_array_equal(found.attributes["light"] == "night", scenes.group == 1)
    assert found.left_out() == ""
