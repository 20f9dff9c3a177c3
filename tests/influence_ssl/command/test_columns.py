"""Columns, duplicate groups, resuming, compare and select against brute force and planted truth."""

import hashlib
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import spearmanr
from torchvision.transforms import functional as TF

from influence_lab.datasets import load, make_scenes
from influence_lab.datasets.base import data_root
from influence_lab.datasets.lookalikes import file_of
from influence_lab.experiments import duplicates
from influence_lab.experiments.planted import Pictures
from influence_lab.records import results
from influence_ssl import GaussianNoise, Identity, InfluenceScorer, Invariance, Scores
from influence_ssl.analysis import selection as select
from influence_ssl.analysis.comparison import compare
from influence_ssl.analysis.duplicates import RIDGE, duplicate_groups, whitened
from influence_ssl.analysis.ranking import read_scores
from influence_ssl.command.main import main
from influence_ssl.files.looks import Looks

COLUMNS = [
    "index", "name", "sha256", "score", "standard_error", "rank", "percentile", "loss",
    "gradient_norm", "nearest", "similarity", *Looks._fields, "duplicate_group",
]  # fmt: skip

ENCODER = """
import signal
from pathlib import Path
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(300, 6)

    def forward(self, x):
        if len(x) > 8:
            calls = Path("calls")
            calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
            if Path("stop").exists() and len(calls.read_text()) == 3:
                signal.raise_signal(signal.SIGINT)
        return torch.tanh(self.layer(x.flatten(1)))
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """24 images of 10 x 10 pixels; 20.png is a copy of 04.png."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for k in range(24):
        picture = Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8))
        picture.save(tmp_path / "images" / f"{k:02}.png")
    (tmp_path / "images/20.png").write_bytes((tmp_path / "images/04.png").read_bytes())
    (tmp_path / "mine.py").write_text(ENCODER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def run(*arguments: object, out: str = "scores.parquet") -> int:
    fixed = ["--data", "images", "--encoder", "mine.py:Encoder", "--device", "cpu"]
    fixed += ["--batch-size", "8", "--draws", "1", "--out", out]
    return main(["score", *fixed, *map(str, arguments)])


def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(300, 6), torch.nn.Tanh())


def images() -> torch.Tensor:
    paths = sorted(Path("images").iterdir())
    return torch.stack([TF.to_tensor(Image.open(path)) for path in paths])


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_columns_against_brute_force(work: Path, suffix: str) -> None:
    draws = 3
    assert run("--draws", draws, out=f"scores.{suffix}") == 0
    if suffix == "parquet":
        table = pandas.read_parquet("scores.parquet")
    else:
        table = pandas.read_csv("scores.csv", skiprows=1)
    assert list(table) == COLUMNS
    x, net = images(), encoder()
    n = len(x)
    names = sorted(path.name for path in Path("images").iterdir())
    assert table["name"].tolist() == names
    digests = [hashlib.sha256(Path("images", name).read_bytes()).hexdigest() for name in names]
    assert table["sha256"].tolist() == digests
    order = sorted(range(n), key=lambda i: (table["score"][i], i))
    assert [int(table["rank"][i]) for i in order] == list(range(1, n + 1))
    np.testing.assert_allclose(table["percentile"], 100 * (n - table["rank"]) / (n - 1))
    with torch.no_grad():
        z, noise = net(x), GaussianNoise()
        losses = [
            1 - F.cosine_similarity(z, net(noise(x, torch.arange(n), draw, 0)))
            for draw in range(draws)
        ]
    np.testing.assert_allclose(table["loss"], torch.stack(losses).mean(0), rtol=1e-4)
    cosine = F.cosine_similarity(z[:, None], z[None], dim=2).fill_diagonal_(-2)
    np.testing.assert_allclose(table["similarity"], cosine.amax(1), rtol=1e-5)
    assert table["nearest"].tolist() == [names[int(i)] for i in cosine.argmax(1)]
    grouped = table["duplicate_group"].notna()
    assert table["name"][grouped].tolist() == ["04.png", "20.png"]
    assert table["duplicate_group"][grouped].tolist() == [1, 1]
    np.testing.assert_allclose(Scores.load(f"scores.{suffix}").values, table["score"], rtol=1e-14)
    assert read_scores(Path(f"scores.{suffix}")).missing() == []


def test_gradient_norm_is_the_root_of_the_score_without_curvature(work: Path) -> None:
    assert run("--curvature", "identity") == 0
    expected = InfluenceScorer(encoder(), curvature=Identity(), progress=False).score(images())
    norm = pandas.read_parquet("scores.parquet")["gradient_norm"]
    np.testing.assert_allclose(norm**2, expected.magnitude, rtol=1e-5)


@pytest.mark.parametrize("draws", [1, 2])
def test_a_stopped_run_goes_on_and_ends_the_same(
    work: Path, capsys: pytest.CaptureFixture[str], draws: int
) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run("--draws", draws, out="whole.parquet") == 0
    calls = len(Path("calls").read_text())
    assert calls == 3 * draws
    Path("calls").unlink()
    Path("stop").touch()
    capsys.readouterr()
    assert run("--draws", draws) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert "kept in scores.parquet.partial; repeat the command to resume" in line
    # Other settings do not go on from there.
    Path("calls").unlink()
    Path("stop").unlink()
    assert run("--draws", draws, "--seed", "1") == 0
    left = "unfinished work with other settings is kept in scores.parquet.partial"
    assert left in capsys.readouterr().out
    Path("calls").unlink()
    assert run("--draws", draws) == 0
    assert left not in capsys.readouterr().out
    assert len(Path("calls").read_text()) == calls - 2
    assert not Path("scores.parquet.partial").exists()
    first, second = (pandas.read_parquet(f"{name}.parquet") for name in ("whole", "scores"))
    pandas.testing.assert_frame_equal(first, second, check_exact=True)


def test_a_stopped_run_does_not_go_on_with_other_data_of_another_module(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The strength of the second draw stands in a module that the perturbation's file imports."""
    (work / "own.py").write_text(
        "import table\n\ndef p(x, index, draw, seed):\n    return x + table.S[draw] * x.square()\n"
    )

    def command(last: float, out: str = "scores.parquet") -> int:
        (work / "table.py").write_text(f"S = [0.1, {last}]")
        monkeypatch.delitem(sys.modules, "table", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return run("--draws", 2, "--perturbation", "own.py:p", out=out)

    assert command(1.5, "whole.parquet") == 0
    Path("calls").write_text("xx")
    Path("stop").touch()
    assert command(0.2) == 130
    Path("stop").unlink()
    capsys.readouterr()
    assert command(1.5) == 0
    assert "unfinished work with other settings is kept" in capsys.readouterr().out
    first, second = (pandas.read_parquet(f"{name}.parquet") for name in ("whole", "scores"))
    pandas.testing.assert_frame_equal(first, second, check_exact=True)
    assert command(0.2) == 0  # which goes on
    assert not Path("scores.parquet.partial").exists()


def test_no_space_left_is_one_line_and_loses_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Path.write_bytes, []

    def full(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 3:  # after the store's probe and the first batch
            raise OSError(28, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert run() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no space left on the disk" in line
    assert "kept in scores.parquet.partial" in line
    Path("calls").unlink()
    assert run() == 0
    assert Path("calls").read_text() == "xx"


def test_the_command_says_how_reliable_its_scores_are(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert "not estimated with one draw" in capsys.readouterr().out
    assert run("--draws", 3) == 0
    found = Scores.load("scores.parquet").provenance["reliability"]
    assert f"reliability: {found:.3f}" in capsys.readouterr().out


def photographs(count: int) -> tuple[np.ndarray, bool]:
    """Real CIFAR-10 test images where there are any, else embedded scenes."""
    if (data_root() / "cifar10" / "test").is_dir():
        return load("cifar10", "test").images[:: 10_000 // count][:count], True
    return make_scenes(count, seed=0).images.images, False


def test_planted_duplicates_are_found(tmp_path: Path) -> None:
    pixels, real = photographs(300)
    planted = duplicates.plant(
        pixels, np.arange(0, 90, 3), tmp_path, np.random.default_rng(0)
    )  # fmt: skip
    names = sorted(path.name for path in tmp_path.iterdir())
    pictures = Pictures([(tmp_path / name).read_bytes() for name in names])
    groups = duplicate_groups(
        pictures.represent(results.load_encoder("cpu", "simclr", 0)), pictures
    )
    where = {names[i]: number for number, group in enumerate(groups) for i in group.members}
    # Embedded scenes, which this encoder has never seen, resemble each other more than some copies
    # resemble their source; there only copies of a file are sure.
    least = {"copy": 10, "jpeg": 9, "crop": 8} if real else {"copy": 10}
    for kind, number in least.items():
        found = [a in where and where[a] == where.get(b) for k, a, b in planted if k == kind]
        assert len(found) == 10
        assert sum(found) >= number, kind
    copies = [group for group in groups if "same file" in group.reasons]
    assert len(copies) == 10 or not real  # scenes have copies of their own
    # Little else is taken for a duplicate; CIFAR-10 has a few of its own.
    strangers = set(where) - {name for _, a, b in planted for name in (a, b)}
    assert len(strangers) <= 0.1 * len(names) or not real


@pytest.mark.parametrize("n", [10, 30])
def test_whitening_is_that_of_the_whole_covariance(n: int) -> None:
    """By brute force: z (C + ρ tr(C)/d I)^(-1/2), of unit length; fewer rows than columns, more."""
    z = torch.randn(n, 20, generator=torch.Generator().manual_seed(0)).double()
    centred = z - z.mean(0)
    values, axes = np.linalg.eigh((centred.T @ centred / n).numpy())
    root = axes @ np.diag((values.clip(0) + RIDGE * values.clip(0).mean()) ** -0.5) @ axes.T
    expected = centred.numpy() @ root
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = whitened(z).numpy()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


@pytest.mark.parametrize("dimensions", [4, 8, 16, 64])
def test_unrelated_images_make_no_group_in_few_dimensions(dimensions: int) -> None:
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(800, dimensions)))
    drawn = rng.integers(0, 256, (800, 16, 16, 3), np.uint8)
    assert duplicate_groups(z, Pictures([file_of(Image.fromarray(p)) for p in drawn])) == []


def test_few_images_and_blank_ones_have_no_false_groups() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 9):
        z = torch.from_numpy(rng.normal(size=(n, 40)))
        noise = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        assert duplicate_groups(z, Pictures([file_of(Image.fromarray(p)) for p in noise])) == []
        # Blank but for what a few bits may hold, as nearly black files of 16 bits are.
        blank = [Image.fromarray((p // 128).astype(np.uint8)) for p in noise]
        assert duplicate_groups(z, Pictures([file_of(p) for p in blank])) == []


def saved(path: str, values: np.ndarray, names: list[str]) -> Path:
    n = len(values)
    Scores(values, np.full(n, np.nan), np.arange(n), names, {}).save(path)
    return Path(path)


def test_compare_against_scipy(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(200)]
    x = -rng.gamma(2, size=200)
    y = x * np.exp(0.3 * rng.normal(size=200))
    y[7] = x.min() * 10
    x[7] = 0
    a = saved("a.npz", x, names)
    b = saved("b.npz", y[::-1][:180].copy(), names[::-1][:180])
    y[:20] = np.nan
    found = compare(a, b)
    kept = np.isfinite(y)
    expected = spearmanr(x[kept], y[kept]).statistic
    assert found.correlation == pytest.approx(expected)
    assert found.low < expected < found.high
    assert 0.02 < found.high - found.low < 0.2
    assert (found.images, found.only_a, found.only_b) == (180, 20, 0)
    b = saved("b.npz", np.where(np.arange(200) == 7, x.min() * 10, x), names)
    assert compare(a, b, top=1).moved == [("7.png", 0.0, 100.0)]
    assert main(["compare", "a.npz", "b.npz"]) == 0
    assert "7.png" in capsys.readouterr().out
    saved("c.npz", np.ones(200), names)
    assert main(["compare", "a.npz", "c.npz"]) == 2
    assert "'c.npz': all common scores are equal" in capsys.readouterr().err
    saved("c.npz", x, [f"other/{name}" for name in names])
    assert main(["compare", "a.npz", "c.npz"]) == 2
    assert "0 images in common" in capsys.readouterr().err


def repaint(*names: str) -> None:
    for name in names:
        Image.new("RGB", (10, 10), (len(names), int(name[:2]), 0)).save(Path("images", name))


def test_compare_leaves_out_other_files_of_the_same_name(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(out="a.parquet") == 0
    repaint("03.png")
    assert run(out="b.csv") == 0
    capsys.readouterr()
    assert main(["compare", "a.parquet", "b.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "23 images in both files; only in a.parquet: 0, only in b.csv: 0"
    assert lines[1] == "note: 1 name, 03.png, stands for different files (SHA-256); left out"
    first, second = (Scores.load(f"{name}").values for name in ("a.parquet", "b.csv"))
    kept = np.arange(24) != 3
    expected = spearmanr(first[kept], second[kept]).statistic
    found = compare(Path("a.parquet"), Path("b.csv"), top=24)
    assert found.correlation == pytest.approx(expected)
    assert "03.png" not in [name for name, *_ in found.moved]
    # Scores made from Python have no digests and are compared by name.
    scores = Scores.load("a.parquet")
    saved("python.npz", scores.values, list(scores.names))
    assert compare(Path("python.npz"), Path("b.csv")).images == 24


def test_compare_refuses_other_files_of_the_same_names(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in ("a.parquet", "a.npz"):
        assert run(out=out) == 0
    repaint(*(f"{k:02}.png" for k in range(22)))
    for out in ("b.parquet", "b.npz"):
        assert run(out=out) == 0
    capsys.readouterr()
    assert main(["compare", "a.parquet", "b.parquet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 images in common, because 22 names, 00.png first, stand for different files" in line
    for a, b in (("a.npz", "b.npz"), ("a.parquet", "b.npz")):
        assert main(["compare", a, b]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "not all of them are the same files" in line
    assert main(["compare", "a.parquet", "a.npz"]) == 0


def test_compare_takes_files_of_more_images_and_of_fewer(work: Path) -> None:
    """Digests of whole data sets differ there, although the common images are the same."""
    assert run(out="a.npz") == 0
    for k in range(4):
        Path("images", f"{k:02}.png").unlink()
    assert run(out="b.npz") == 0
    assert main(["compare", "a.npz", "b.npz"]) == 0
    assert compare(Path("a.npz"), Path("b.npz")).images == 20


def test_compare_takes_the_same_rows_of_runs_with_other_images_besides(work: Path) -> None:
    """A slice has the digest of the whole set in its provenance."""
    for name in ("a.npz", "b.npz"):
        assert run(out=name) == 0
        Scores.load(name)[8:20].save(name)
        repaint("00.png", "01.png")
    assert compare(Path("a.npz"), Path("b.npz")).images == 12


def listed(*arguments: str) -> list[str]:
    assert main(["select", "scores.parquet", "--out", "list.txt", *arguments]) == 0
    return Path("list.txt").read_text().splitlines()


def test_select_by_budget_threshold_and_group(work: Path) -> None:
    assert run() == 0
    table = pandas.read_parquet("scores.parquet")
    before = {path: path.read_bytes() for path in Path("images").iterdir()}
    names = table["name"].tolist()
    magnitude = -table["score"]
    by_rank = table.sort_values("rank")["name"].tolist()
    assert listed("--drop-highest", "5") == sorted(by_rank[5:])
    assert listed("--drop-highest", "25%", "--list", "drop") == sorted(by_rank[:6])
    assert listed("--drop-lowest", "3", "--list", "drop") == sorted(by_rank[-3:])
    limit = float(magnitude.median())
    assert listed("--drop-above", str(limit)) == [
        name for name, m in zip(names, magnitude, strict=True) if m <= limit
    ]
    assert listed("--drop-below", str(limit)) == [
        name for name, m in zip(names, magnitude, strict=True) if m >= limit
    ]
    assert listed("--drop-duplicates", "--list", "drop") == ["20.png"]
    # One of a group stays also where another rule drops its first member.
    below = [m for name, m in zip(names, magnitude, strict=True) if name in ("04.png", "20.png")]
    kept, dropped = select.select(
        Path("scores.parquet"), select.Rule(above=sum(below) / 2, duplicates=True)
    )
    assert len({"04.png", "20.png"} & set(kept)) == 1
    assert sorted(kept + dropped) == names
    assert {path: path.read_bytes() for path in Path("images").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give at least one --drop"),
        (["--drop-highest", "99"], "a number from 0 to 24"),
        (["--drop-lowest", "-1"], "expected one argument|a number from 0 to 24"),
        (["--drop-lowest", "110%"], "or a share such as 10%"),
        (["--drop-above", "nan"], "argument --drop-above: invalid"),
        (["--drop-highest", "1", "--out", "images/00.png"], "has the suffix of an image"),
        (["--drop-highest", "1", "--out", "no/list.txt"], "is not a folder; create it"),
        (
            ["--drop-highest", "1", "--out", "scores.parquet"],
            "would overwrite an input",
        ),
    ],
)
def test_select_refuses_in_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run() == 0
    content = Path("scores.parquet").read_bytes()
    capsys.readouterr()
    before = sorted(os.listdir())
    try:
        code = main(["select", "scores.parquet", "--out", "list.txt", *arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert sorted(os.listdir()) == before
    assert Path("scores.parquet").read_bytes() == content


def test_recorder_changes_no_score(work: Path) -> None:
    assert run("--draws", 2) == 0
    expected = InfluenceScorer(encoder(), Invariance(), draws=2, progress=False).score(images())
    found = Scores.load("scores.parquet")
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)
    assert found.provenance["objective"] == repr(Invariance())
