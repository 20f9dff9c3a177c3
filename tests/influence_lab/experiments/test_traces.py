"""The traces of queries: the numbers again from gradients, by brute force, and the record."""

import shutil

import numpy as np
import pytest
import torch
from again import leaves
from PIL import Image
from sklearn.metrics import roc_auc_score

from influence_lab.cli import main
from influence_lab.experiments import traces
from influence_lab.pretrain.probes import extract
from influence_lab.pretrain.resnets import normalise
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_lab.records.thumbnails import load_sheet
from influence_ssl import InfluenceScorer, LoGra


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    place = results.folder_of("tiny", "simclr", 0, root)
    place.mkdir(parents=True)
    shutil.copy(results.folder_of("tiny", "simclr", 0) / "encoder.safetensors", place)
    where = ["--results", str(root), "--out", str(root / "f.svg")]
    assert main(["reproduce", "traces", "--profile", "tiny", *where]) == 0
    return root, results.load_record("tiny", "traces", root)


@pytest.fixture(scope="module")
def images():
    """The training set with its copies and the test images, as the record says that they are."""
    train, test = data_for("tiny", "train"), data_for("tiny", "test")
    rng = np.random.default_rng(3)
    copied = np.sort(rng.permutation(512)[:128])
    asked = np.sort(rng.permutation(512)[:400])
    copies = traces.plant(train.images[copied], rng)
    return np.concatenate([train.images, copies, test.images[asked]]), copied


def test_copies_are_in_turn_exact_and_cropped(images):
    pixels, copied = images
    copies, originals = pixels[512:640], pixels[copied]
    assert (copies[::2] == originals[::2]).all()
    differ = abs(copies[1::2].astype(int) - originals[1::2]).mean((1, 2, 3))
    assert (differ > 0).all()
    assert np.median(differ) < 30
    alone = np.asarray(Image.fromarray(originals[1]).resize((32, 32)))
    assert alone.shape == copies[1].shape


def test_the_numbers_are_those_of_the_embeddings(made, images):
    # φ alone, no call of influence: I = −φ·φ, and with much damping φ is the gradient.
    pixels, copied = images
    encoder = results.load_encoder("tiny", "simclr", 0)
    x = normalise(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))

    def embedded(curvature):
        scorer = InfluenceScorer(encoder, curvature=curvature, progress=False).fit(x[:640])
        return scorer.embed(x, index=torch.arange(len(x))).double().numpy()

    record = made[1]
    phi = embedded(LoGra())
    own = -(phi[:640] ** 2).sum(1)
    has = np.zeros(640, bool)
    has[copied] = has[512:] = True
    found = record["has a copy"]
    assert found["low self-influence"][0] == pytest.approx(roc_auc_score(has, own), abs=1e-3)
    unit = phi[:640] / np.linalg.norm(phi[:640], axis=1, keepdims=True)
    other = unit @ unit.T - 3 * np.eye(640)
    assert found["influence of another image"][0] == pytest.approx(
        roc_auc_score(has, other.max(1)), abs=1e-3
    )
    hits = other[512:].argmax(1) == copied
    assert record["original first"]["cosine of embeddings"]["exact copy"][0] == pytest.approx(
        hits[::2].mean(), abs=1e-3
    )
    one = -phi[512:640] @ phi[:640].T
    one[np.arange(128), np.arange(512, 640)] = np.inf
    assert record["original first"]["influence"]["crop"][0] == pytest.approx(
        (one.argmin(1) == copied)[1::2].mean(), abs=1e-3
    )
    gradient = embedded(LoGra(damping=1e9))
    z = extract(encoder, torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).double().numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    tops = [
        np.argsort(key, axis=1)[:, :10]
        for key in (
            -phi[640:] @ phi[:512].T,
            -gradient[640:] @ gradient[:512].T,
            -z[640:] @ z[:512].T,
        )
    ]
    for (one, other), name in (
        ((0, 2), "influence and nearest neighbours"),
        ((1, 2), "product of gradients and nearest neighbours"),
        ((0, 1), "influence and product of gradients"),
    ):
        both = [len(set(a) & set(b)) / 10 for a, b in zip(tops[one], tops[other], strict=True)]
        assert record["shared"][name][0] == pytest.approx(np.mean(both), abs=2e-3), name


def test_shown_queries_have_their_own_kind_of_images(made, images):
    root, record = made
    pixels, copied = images
    pictures = load_sheet(root / "tiny" / "traces.jpg", 1 + 3 * traces.SHOWN)
    positions = [k for row in record["shown"] for k in row["positions"]]
    error = abs(pictures.astype(float) - pixels[positions]).mean((1, 2, 3))
    assert error.max() < 6
    for row in record["shown"]:
        helped, hurt = row["influence"][:3], row["influence"][3:6]
        assert helped == sorted(helped)
        assert hurt == sorted(hurt, reverse=True)
        assert helped[0] < 0
        assert row["positions"][0] not in row["positions"][1:]
        assert max(row["positions"][1:]) < 640
    assert record["shown"][0]["positions"][0] == 512
    # An exact copy's nearest neighbour is its original.
    assert record["shown"][0]["positions"][7] == copied[0]


def test_the_recorded_result_is_made_again(made):
    tracked = results.load_record("tiny", "traces")
    record = made[1]
    assert leaves({**record, "shown": 0}) == pytest.approx(
        leaves({**tracked, "shown": 0}), rel=1e-3, abs=0.01
    )
    assert record["provenance"]["data_sha256"] == tracked["provenance"]["data_sha256"]


def test_figures_name_query_and_classes(made):
    root, record = made
    for beside, part in (("hurt", slice(3, 6)), ("near", slice(6, 9))):
        figure = traces.figure("tiny", record, root, beside)
        titles = [axis.get_title() for axis in figure.axes]
        row = record["shown"][0]
        expected = ["query", *(name[:9] for name in row["classes"][:3] + row["classes"][part])]
        assert titles[:7] == expected
        assert len(titles) == 7 * len(record["shown"])


def test_without_an_encoder_the_command_says_what_to_run(tmp_path, capsys):
    arguments = ["reproduce", "traces", "--profile", "tiny", "--results", str(tmp_path)]
    assert main([*arguments, "--out", str(tmp_path / "f.svg")]) == 1
    assert "influence-lab pretrain simclr --profile tiny" in capsys.readouterr().err
