"""The command against the Python interface: scores, settings, tables, summary, interruption."""

import hashlib
import os
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import listing, run, scored, small, tensors
from PIL import ExifTags, Image
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torchvision.transforms import functional as TF

from influence_ssl import (
    EmpiricalFisher,
    GaussianNoise,
    Identity,
    InfluenceScorer,
    Invariance,
    LoGra,
    Relative,
    Scores,
)
from influence_ssl.encoders.loading import source_code


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ((), {}),
        (
            ("--noise-mean", "0", "--noise-std", "0.5", "--draws", "3", "--seed", "4"),
            {
                "objective": Invariance(GaussianNoise(0.0, 0.5)),
                "draws": 3,
                "seed": 4,
                "curvature": LoGra(seed=4),
            },
        ),
        (("--rank", "3", "--damping", "0.02"), {"curvature": LoGra(rank=3, damping=0.02)}),
        (("--damping", "relative:2"), {"curvature": LoGra(damping=Relative(2.0))}),
        (("--curvature", "fisher"), {"curvature": EmpiricalFisher()}),
        (("--curvature", "identity"), {"curvature": Identity()}),
        (("--dtype", "float64"), {"dtype": torch.float64}),
        (("--layers", "0,4"), {"layers": ["0", "4"]}),
        (("--layers=-2",), {"layers": ["0", "4"]}),
    ],
)
def test_the_command_gives_the_scores_of_the_python_interface(
    work: Path, arguments: tuple[str, ...], settings: dict[str, object]
) -> None:
    found = scored(*arguments)
    expected = InfluenceScorer(
        small(int(settings.get("seed", 0))), **settings, progress=False
    ).score(tensors())
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-6)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-4)
    assert list(found.names) == listing()
    assert (found.values < 0).all()


def test_settings_that_differ_give_scores_that_differ(work: Path) -> None:
    changes = ((), ("--noise-std", "0.5"), ("--seed", "1"), ("--rank", "2"), ("--damping", "1"))
    values = [tuple(scored(*change).values) for change in changes]
    assert len(set(values)) == len(changes)


def test_batch_size_order_and_source_do_not_change_the_scores(work: Path) -> None:
    expected = scored()
    by_name = dict(zip(expected.names, expected.values, strict=True))
    with zipfile.ZipFile("images.zip", "w") as archive:
        for name in listing():
            archive.write(Path("images", name), name)
    Path("list.csv").write_text("path\n" + "".join(f"images/{name}\n" for name in listing()))
    for found in (
        scored("--batch-size", "1"),
        scored("--batch-size", "7"),
        scored(data="images.zip"),
        scored(data="list.csv"),
    ):
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-4)
        assert spearmanr(found.values, expected.values).statistic >= 0.9999
    # In another order the images have other indices, so a perturbation by image keeps them equal.
    Path("by_image.py").write_text("def darker(x, index, draw, seed):\n    return x * 0.7\n")
    expected = scored("--perturbation", "by_image.py:darker")
    by_name = dict(zip(expected.names, expected.values, strict=True))
    names = listing()[::-1]
    Path("list.csv").write_text("path\n" + "".join(f"images/{name}\n" for name in names))
    found = scored("--perturbation", "by_image.py:darker", data="list.csv")
    np.testing.assert_allclose(found.values, [by_name[name] for name in names], rtol=1e-4)


def test_a_perturbation_of_ones_own(work: Path) -> None:
    def halving(x: torch.Tensor, index: torch.Tensor, draw: int, seed: int) -> torch.Tensor:
        return x / 2 + (index[:, None, None, None] + draw) / 100

    found = scored("--perturbation", "mine:halving", "--draws", "2")
    scorer = InfluenceScorer(small(), Invariance(halving), draws=2, progress=False)
    np.testing.assert_allclose(found.values, scorer.score(tensors()).values, rtol=1e-6)


def test_a_file_changed_within_a_second_is_run_as_it_stands(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two sources of one size and second, Python would run the one that it compiled first."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = Path("by_image.py")

    def darker(factor: str) -> np.ndarray:
        file.write_text(f"def darker(x, index, draw, seed):\n    return x * {factor}\n")
        os.utime(file, (1e9, 1e9))
        return scored("--perturbation", "by_image.py:darker").values

    assert not np.allclose(darker("0.7"), darker("0.2"), rtol=0.1)
    assert not Path("__pycache__").exists()
    # As Python itself says it: the file may look for others beside it from another folder.
    assert sys.modules["_loaded_by_image"].__file__ == str(file.absolute())


def test_a_perturbation_may_be_an_object(work: Path) -> None:
    """Its numbers stand in the module that makes it, its code in another: both are its source."""
    text = "from influence_ssl import GaussianNoise\nnoise = GaussianNoise(0.1, 0.3)\n"
    Path("objects.py").write_text(text)
    found = scored("--perturbation", "objects.py:noise")
    scorer = InfluenceScorer(small(), Invariance(GaussianNoise(0.1, 0.3)), progress=False)
    np.testing.assert_allclose(found.values, scorer.score(tensors()).values, rtol=1e-6)
    source = source_code("objects.py:noise")
    assert text.encode() in source
    assert b"class GaussianNoise" in source
    assert source_code("mine:halving") == Path("mine.py").read_bytes()
    assert source_code("builtins:abs") == b""


def test_preprocess_comes_with_the_encoder(work: Path) -> None:
    Image.new("RGB", (31, 7), (200, 10, 10)).save("images/wide.png")
    found = scored(encoder="mine.py:resizing")
    resized = [
        TF.to_tensor(Image.open(Path("images", name)).resize((10, 10))) for name in listing()
    ]
    expected = InfluenceScorer(small(), progress=False).score(torch.stack(resized))
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-6)


@pytest.mark.parametrize("form", ["safetensors", "state_dict", "nested"])
def test_weights_are_loaded(work: Path, form: str) -> None:
    trained = small(seed=11)
    state = trained.state_dict()
    if form == "safetensors":
        save_file(state, "weights.safetensors")
    else:
        torch.save({"epoch": 3, "state_dict": state} if form == "nested" else state, "weights.pt")
    path = Path("weights.safetensors" if form == "safetensors" else "weights.pt")
    found = scored("--weights", path)
    expected = InfluenceScorer(trained, progress=False).score(tensors())
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-6)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.provenance["weights sha256"] == digest


def test_unreadable_images_are_skipped_counted_and_listed(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = scored()
    lost = listing()[3]
    Path("images", lost).write_bytes(b"no picture")
    Path("images", "notes.txt").write_text("a note")
    capsys.readouterr()
    found = scored()
    output = capsys.readouterr().out
    assert "23 images (3 x 10 x 10) scored on cpu" in output
    assert "1 skipped as unreadable:" in output
    assert f"{lost}: not an image of a known format" in output
    assert "left out by their names: 1 .txt" in output
    assert found.provenance["data"]["skipped"] == [[lost, "not an image of a known format"]]
    # The others keep their indices, and with them their noise.
    assert found.index.tolist() == [k for k in expected.index.tolist() if k != 3]
    assert run("--strict") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert repr(lost) in line


def test_the_summary_tells_what_was_not_read_and_what_was_converted(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.heic", "b.heic", "c.HEIC", "d.dng"):
        Path("images", name).touch()
    rng = np.random.default_rng(0)
    for k in range(2):
        Image.fromarray(rng.integers(0, 4096, (10, 10), np.uint16)).save(f"images/grey{k}.png")
    clear = np.zeros((10, 10, 1), np.uint8)
    colours = rng.integers(0, 256, (10, 10, 3), np.uint8)
    Image.fromarray(np.concatenate([colours, clear + 9], 2)).save("images/cut.png")
    for orientation in (1, 6, 8):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(colours).save(f"images/camera{orientation}.jpg", exif=exif)
    data = scored().provenance["data"]
    output = capsys.readouterr().out
    assert "left out by their names: 3 .heic, 1 .dng\n" in output
    assert (
        "converted to 8-bit RGB: 2 grey, 2 of 16 bits (12 in use), "
        "1 with transparency (placed on mid-grey)\n"
    ) in output
    assert "EXIF rotation not applied: 2 (read with their pixels as stored" in output
    assert data["EXIF rotation not applied"] == 2
    assert data["other files"] == {".heic": 3, ".dng": 1}
    assert data["converted"] == {
        "grey": 2,
        "of 16 bits (12 in use)": 2,
        "with transparency (placed on mid-grey)": 1,
    }


def test_images_behind_a_link_are_scored(work: Path) -> None:
    expected = scored()
    Path("images/cat").rename("cats")
    Path("images/cat").symlink_to(Path("cats").resolve())
    found = scored()
    assert found.names == expected.names
    np.testing.assert_array_equal(found.values, expected.values)


def test_provenance_tells_how_the_scores_were_made(work: Path) -> None:
    found = scored("--draws", "2", "--damping", "relative:0.3")
    arguments = found.provenance["arguments"]
    assert arguments["encoder"] == "mine.py:small"
    assert arguments["draws"] == 2
    assert arguments["damping"] == "relative:0.3"
    lines = "".join(
        f"{hashlib.sha256(Path('images', name).read_bytes()).hexdigest()} {name}\n"
        for name in listing()
    )
    data = found.provenance["data"]
    assert data["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert (data["images"], data["shape"]) == (24, [3, 10, 10])
    assert found.provenance["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_hold_the_same_scores(work: Path, suffix: str) -> None:
    expected = scored()
    assert run("--out", f"scores{suffix}") == 0
    found = Scores.load(f"scores{suffix}")
    np.testing.assert_array_equal(found.values, expected.values)
    assert list(found.names) == list(expected.names)
    assert found.provenance["data"] == expected.provenance["data"]


def test_the_summary_shows_the_extremes_and_the_sign(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scored()
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines() if line.startswith("  ")]
    order = np.argsort(found.values)
    assert [row[2] for row in rows if row[0] == "highest"] == [found.names[k] for k in order[:3]]
    assert [row[2] for row in rows if row[0] == "lowest"] == [
        found.names[k] for k in order[::-1][:3]
    ]
    assert "the more negative, the higher the influence" in output
    assert output.endswith("written to scores.npz\n")


def test_ctrl_c_is_one_line_and_leaves_an_earlier_result_alone(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    Path("scores.npz").write_text("an earlier result")
    assert run(encoder="mine.py:Interrupted") == 130
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert Path("scores.npz").read_text() == "an earlier result"


def test_traceback_shows_where_an_error_arose(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--traceback", encoder="mine.py:Broken") == 2
    error = capsys.readouterr().err
    assert "mine.py" in error
    assert error.splitlines()[-1].startswith("influence-ssl: error: RuntimeError")
