"""The check without gradients: its columns, its features, copies across folders and labels."""

import copy
import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

from influence_lab.experiments.scored import vectors_of
from influence_lab.pretrain.resnets import cifar_preprocess
from influence_ssl.analysis import neighbours
from influence_ssl.analysis.flags import flags
from influence_ssl.command.checking import represent
from influence_ssl.command.main import main
from influence_ssl.encoders import builtin
from influence_ssl.encoders.loading import load_encoder
from influence_ssl.files.images import ImageFiles
from influence_ssl.files.looks import looks_of, shrunk

WITH_INDEX = pytest.mark.skipif(sys.platform == "darwin", reason="faiss crashes beside PyTorch")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty pictures of several sizes in two folders; three copies, of which one larger."""
    rng = np.random.default_rng(0)
    for k in range(30):
        path = tmp_path / "photos" / ("cat" if k % 2 else "dog") / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (7, 7, 3), np.uint8)
        Image.fromarray(small).resize((40 + k, 48), 3).save(path)
    root = tmp_path / "photos"
    shutil.copy(root / "dog/00.png", root / "cat/00-copy.png")
    large = Image.open(root / "dog/02.png")
    large.resize((84, 96), 3).save(root / "dog/02-large.png")
    Image.open(root / "dog/04.png").transpose(Image.Transpose.ROTATE_90).save(root / "dog/04-t.png")
    lying = Image.Exif()
    lying[ExifTags.Base.Orientation] = 6
    Image.open(root / "dog/06.png").save(root / "dog/06.png", exif=lying)
    monkeypatch.chdir(tmp_path)
    return tmp_path


OWN = """
import torch
from torch import nn
from torchvision.transforms import v2

scale = v2.Compose([v2.Resize((8, 8)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

def of(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).to(dtype), scale

def single():
    return of(torch.float32)

def double():
    return of(torch.float64)

def coarse():
    return of(torch.bfloat16)

class Two(nn.Module):
    def forward(self, x):
        return x.flatten(1), x

def several():
    return Two(), scale
"""


def test_encoders_in_other_dtypes_are_taken_as_score_takes_them(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text(OWN)
    found = {}
    for name in ("single", "double", "coarse"):
        arguments = ["--data", "photos", "--encoder", f"own.py:{name}", "--device", "cpu"]
        assert main(["check", *arguments, "--out", f"{name}.csv"]) == 0, capsys.readouterr().err
        found[name] = np.load(f"{name}.csv.features.npz")["features"]
    np.testing.assert_allclose(found["double"], found["single"], atol=1e-5)
    np.testing.assert_allclose(found["coarse"], found["single"], atol=0.05)
    capsys.readouterr()
    assert main(["check", *arguments[:2], "--encoder", "own.py:several", "--out", "x.csv"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the encoder returned a tuple; wrap it so that it returns one tensor (B, D)" in line
    assert not Path("x.csv").exists()


def test_check_in_one_command(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--data", "photos", "--out", "check.parquet", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "sees every image at 32 x 32 pixels" in said
    assert "EXIF rotation not applied: 1 (read with their pixels as stored" in said
    assert "likely duplicates: 6 images in 3 groups" in said
    assert "across folder: 1 group of duplicates" in said
    table = pandas.read_parquet("check.parquet").set_index("name")
    group = table["duplicate_group"]
    for one, other in (
        ("dog/00.png", "cat/00-copy.png"),
        ("dog/02.png", "dog/02-large.png"),
        ("dog/04.png", "dog/04-t.png"),
    ):
        assert group[one] == group[other]
    assert group.notna().sum() == 6
    assert set(table["groups across folder"][group == group["dog/00.png"]]) == {"cat | dog"}
    assert table.loc["dog/02-large.png", ["width", "height"]].tolist() == [84, 96]
    # By brute force: features, and the mean cosine distance to the ten nearest.
    loaded = load_encoder("builtin:cifar-simclr")
    images = ImageFiles("photos", loaded.preprocess)
    with torch.inference_mode():
        z = loaded.module(torch.stack([images[k][0] for k in range(len(images))]))
    features = np.load("check.parquet.features.npz")
    assert features["names"].tolist() == list(images.names)
    np.testing.assert_allclose(features["features"], z, atol=1e-5)
    cosine = F.cosine_similarity(z[:, None], z[None], dim=2).fill_diagonal_(-2)
    expected = 1 - cosine.topk(10).values.mean(1)
    np.testing.assert_allclose(table["density"][list(images.names)], expected, atol=1e-5)
    covariance = np.cov(z.double().numpy().T, bias=True)
    covariance += 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    off = (z - z.mean(0)).double().numpy()
    far = np.sqrt((off @ np.linalg.inv(covariance) * off).sum(1))
    np.testing.assert_allclose(table["mahalanobis"][list(images.names)], far, rtol=1e-4)
    # What it wrote can be acted on: the larger copy stays.
    select = ["select", "check.parquet", "--drop-duplicates", "--list", "drop", "--out", "drop.txt"]
    assert main(select) == 0
    dropped = Path("drop.txt").read_text().split()
    assert len(dropped) == 3
    assert "dog/02.png" in dropped
    assert main(["select", "check.parquet", "--drop-highest", "1", "--out", "drop.txt"]) == 2
    assert "holds no scores to select by" in capsys.readouterr().err
    assert main(["report", "check.parquet", "--out", "r.html"]) == 2
    assert "give a file that influence-ssl score wrote" in capsys.readouterr().err


def test_a_check_in_another_format_keeps_the_features_of_the_first(photos: Path) -> None:
    for out in ("check.csv", "check.parquet"):
        assert main(["check", "--data", "photos", "--out", out, "--device", "cpu"]) == 0
    names = {path.name for path in Path().glob("*.npz")}
    assert names == {"check.csv.features.npz", "check.parquet.features.npz"}


@pytest.mark.parametrize("by_index", [pytest.param(True, marks=WITH_INDEX), False])
@pytest.mark.parametrize("command", ["check", "score"])
def test_many_images_are_searched_by_the_index_or_announced(
    command: str,
    by_index: bool,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(neighbours, "EXACT", 32)
    monkeypatch.setattr(neighbours, "_MACOS", not by_index)
    encoder = ["--encoder", "builtin:cifar-simclr"]
    out = ["--out", "out.parquet", "--device", "cpu"]
    assert main([command, "--data", "photos", *encoder, *out]) == 0
    said = capsys.readouterr().out
    assert ("neighbours among 33 images: by an index" in said) == by_index
    assert ("comparing 33 images with one another takes about 1 min\n" in said) != by_index
    assert "likely duplicates: 6 images in 3 groups" in said


@pytest.mark.parametrize(
    "paths",
    [
        "C:\\photos\\{}",
        "/data/photos/{}",
        "photos/{}",
        "./{}",
    ],
)
def test_labels_reach_the_groups_however_their_paths_begin(
    photos: Path, capsys: pytest.CaptureFixture[str], paths: str
) -> None:
    rows = ["file_name;label;split"]
    for k in range(30):
        name = paths.format(f"{'cat' if k % 2 else 'dog'}/{k:02}.png")
        rows.append(f"{name.replace('/', chr(92)) if 'C:' in paths else name};a;train")
    for name, label, split in (("cat/00-copy", "a", "test"), ("dog/04-t", "b", "train")):
        rows.append(f"{paths.format(name)}.png;{label};{split}")
    Path("labels.csv").write_text("\n".join(rows))
    arguments = ["--table", "labels.csv", "--out", "check.csv", "--device", "cpu"]
    assert main(["check", "--data", "photos", *arguments]) == 0
    said = capsys.readouterr().out
    assert "across label: 1 group of duplicates" in said
    assert "across split: 1 group of duplicates" in said


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a/cat/01.png", "b/cat/01.png"], "has 'a/cat/01.png' and 'b/cat/01.png' for the image"),
        (["zebra.png"], "names none of the images"),
    ],
)
def test_labels_that_fit_two_images_or_none_are_refused(
    photos: Path, capsys: pytest.CaptureFixture[str], rows: list[str], message: str
) -> None:
    Path("labels.csv").write_text("\n".join(["path,label", *(f"{row},x" for row in rows)]))
    arguments = ["--table", "labels.csv", "--out", "check.csv", "--device", "cpu"]
    assert main(["check", "--data", "photos", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "check.npz"], "must end in .csv or .parquet"),
        (["--encoder", "builtin:other"], "the only built-in encoder is builtin:cifar-simclr"),
        (["--weights", "w.safetensors"], "has its own weights; leave it out"),
        (["--batch-size", "0"], "give at least 1"),
    ],
)
def test_check_refuses_in_one_line(
    photos: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    fixed = ["--out", "check.csv"] if "--out" not in arguments else []
    assert main(["check", "--data", "photos", "--device", "cpu", *fixed, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(Path().glob("check.*"))


@pytest.mark.parametrize("option", ["--table", "--weights"])
def test_the_features_overwrite_no_input(
    photos: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    given = Path("check.csv.features.npz")
    given.write_text("path,label\ncat/01.png,x\n")
    arguments = [option, str(given), "--out", "check.csv", "--device", "cpu"]
    assert main(["check", "--data", "photos", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"'{given}' would overwrite an input" in line
    assert given.read_text() == "path,label\ncat/01.png,x\n"


def test_the_encoder_that_is_built_in_is_the_one_whose_scores_are_recorded() -> None:
    own = load_encoder("builtin:cifar-simclr")
    recorded = vectors_of("cpu", "simclr", 0).origin
    assert recorded["encoder_sha256"] == hashlib.sha256(builtin.WEIGHTS.read_bytes()).hexdigest()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    assert torch.allclose(own.preprocess(picture), cifar_preprocess(picture))
    assert own.preprocess(picture.resize((300, 200))).shape == (3, 32, 32)


def test_each_flag_is_raised_by_what_it_names() -> None:
    rng = np.random.default_rng(0)
    plain = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64), 0)
    grey = plain.convert("L").convert("RGB")
    made = {
        "dark": plain.point(lambda value: value // 4),
        "bright": plain.point(lambda value: 250 + value // 64),
        "blurry": Image.linear_gradient("L").resize((64, 64)).convert("RGB").point(
            lambda value: 60 + value // 2
        ),
        "low information": Image.new("RGB", (64, 64), (120, 90, 60)),
        "odd aspect": plain.resize((64, 20), 0),
        "odd size": plain.resize((800, 800), 0),
        "grey": grey,
    }  # fmt: skip
    pictures = [*made.values(), *[plain] * 20]
    found = flags(looks_of([shrunk(picture, 1000) for picture in pictures]))
    for name, own in zip(made, found, strict=False):
        assert name in own, (name, own)
    assert found[len(made) :] == [[]] * 20


@pytest.mark.parametrize("kept", [True, False])
def test_representations_are_those_of_each_image_alone(photos: Path, kept: bool) -> None:
    """In batches that do not divide the number of images, in memory or read again."""
    encoder, own = builtin.from_package("builtin:cifar-simclr")
    files = ImageFiles(photos / "photos", own).readable()
    found = represent(encoder, files if kept else copy.copy(files), 7, torch.device("cpu"))
    with torch.no_grad():
        alone = [encoder.eval()(files[k][0][None]).flatten(1) for k in range(len(files))]
    torch.testing.assert_close(found, torch.cat(alone))
