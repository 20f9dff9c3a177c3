"""The command against the Python interface, and every input it must refuse in one line."""

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import nn
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
from influence_ssl.cli import main
from influence_ssl.report.loading import source_code

ENCODERS = """
import signal
import torch
from torch import nn
from torchvision.transforms import functional as TF


def small():
    first, second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
    return nn.Sequential(first, nn.GELU(), second, nn.Flatten(), nn.Linear(72, 5))


def resizing():
    return small(), lambda image: TF.to_tensor(image.resize((10, 10)))


def halving(x, index, draw, seed):
    return x / 2 + (index[:, None, None, None] + draw) / 100


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(300, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += len(x) > 8
        if self.calls > 1:
            self.fail()  # in the middle: at the second batch
        return self.layer(x.flatten(1))


class Interrupted(Failing):
    def fail(self):
        signal.raise_signal(signal.SIGINT)


class Broken(Failing):
    def fail(self):
        raise RuntimeError("shapes do not\\n   fit.")


class Exhausted(Failing):
    def fail(self):
        raise torch.OutOfMemoryError("many\\nlines")


class Zero(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(300, 4, bias=False)

    def forward(self, x):
        dark = (x.flatten(1).max(1).values > 0)[:, None]
        return self.layer(x.flatten(1)) * dark


class Tuple(Zero):
    def forward(self, x):
        return super().forward(x), x


def not_finite():
    module = nn.Linear(300, 4)
    module.weight.data[1, 2] = torch.nan
    return module


def shouting():
    raise ValueError("no\\nweights")


def number():
    return 3


def needs_argument(path):
    return nn.Linear(300, 4)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 24 images of 10 x 10 pixels in two folders, and encoders."""
    rng = np.random.default_rng(0)
    for k in range(24):
        path = tmp_path / "images" / ("cat" if k % 2 else "dog") / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)).save(path)
    (tmp_path / "mine.py").write_text(ENCODERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def run(*arguments: object, data: str = "images", encoder: str = "mine.py:small") -> int:
    given = [str(argument) for argument in arguments]
    if "--out" not in given:
        given += ["--out", "scores.npz"]
    fixed = ["--data", data, "--encoder", encoder, "--device", "cpu", "--batch-size", "8"]
    return main(["score", *fixed, *given])


def scored(*arguments: object, **settings: str) -> Scores:
    assert run(*arguments, **settings) == 0
    return Scores.load("scores.npz")


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.GELU(),
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.Flatten(),
        nn.Linear(72, 5),
    )


def outputs() -> list[Path]:
    files = Path.cwd().rglob("*.[cnp][spa]*")
    return sorted(path for path in files if ".partial" not in str(path))


def listing() -> list[str]:
    return sorted(str(path.relative_to("images")) for path in Path("images").rglob("*.png"))


def tensors() -> torch.Tensor:
    return torch.stack([TF.to_tensor(Image.open(Path("images", name))) for name in listing()])


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
    assert "1 skipped" in output
    assert f"{lost}: not an image of a known format" in output
    assert "1 files without an image's extension" in output
    assert found.provenance["data"]["skipped"] == [[lost, "not an image of a known format"]]
    # The others keep their indices, and with them their noise.
    assert found.index.tolist() == [k for k in expected.index.tolist() if k != 3]
    assert run("--strict") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert repr(lost) in line


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
    assert found.provenance["packages"]["torch"] == torch.__version__.partition("+")[0]


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


def foreign_weights() -> None:
    state = small().state_dict()
    state["head.weight"] = state.pop("4.weight")
    torch.save(state, "weights.pt")


def wide_weights() -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 7, 3)).state_dict(), "weights.pt")


def mixed_sizes() -> None:
    Image.new("RGB", (5, 6)).save("images/small.png")


def one_image() -> None:
    for name in listing()[1:]:
        Path("images", name).unlink()


def zero_image() -> None:
    Image.new("RGB", (10, 10)).save("images/cat/01.png")


def escaping_zip() -> None:
    with zipfile.ZipFile("images.zip", "w") as archive:
        archive.writestr("../../etc/a.png", b"")


REFUSED = {
    "no such folder": (lambda: shutil.rmtree("images"), (), {}, "no such folder.*'images'"),
    "empty folder": (
        lambda: (shutil.rmtree("images"), os.mkdir("images")), (), {}, "no images in 'images'"
    ),
    "one image": (one_image, (), {}, "'images' holds one readable image"),
    "mixed sizes": (
        mixed_sizes, (), {}, "'cat/01.png' is 10 x 10.*'small.png' is 5 x 6 pixels.*resize"
    ),
    "zip that escapes": (escaping_zip, (), {"data": "images.zip"}, r"'\.\./\.\./etc/a\.png'"),
    "zero representation": (
        zero_image, (), {"encoder": "mine.py:Zero"}, "clean image 'cat/01.png' is zero"
    ),
    "NaN weights": (None, (), {"encoder": "mine.py:not_finite"}, "'weight' has NaN"),
    "encoder returns a tuple": (None, (), {"encoder": "mine.py:Tuple"}, "tuple.*one tensor"),
    "encoder fails": (
        None, (), {"encoder": "mine.py:Broken"}, "RuntimeError: shapes do not fit; --traceback"
    ),
    "out of memory": (None, (), {"encoder": "mine.py:Exhausted"}, "smaller --batch-size"),
    "no colon": (None, (), {"encoder": "mine"}, "'mine': give package.module:function"),
    "no file": (None, (), {"encoder": "other.py:small"}, "no file 'other.py'"),
    "no module": (None, (), {"encoder": "no_such:small"}, "No module named 'no_such'"),
    "no function": (None, (), {"encoder": "mine.py:large"}, "no function 'large'; .*small"),
    "function raises": (None, (), {"encoder": "mine.py:shouting"}, "ValueError: no weights"),
    "function needs more": (None, (), {"encoder": "mine.py:needs_argument"}, "argument: 'path'"),
    "no encoder": (None, (), {"encoder": "mine.py:number"}, "returns a int; .*nn.Module"),
    "file with an error": (
        lambda: Path("bad.py").write_text("import nowhere_to_be_found"),
        (), {"encoder": "bad.py:small"}, "bad.py cannot be imported: .*nowhere_to_be_found",
    ),
    "no weights": (None, ("--weights", "w.pt"), {}, "'w.pt': there is no such file"),
    "weights that are text": (
        lambda: Path("weights.pt").write_text("hello"),
        ("--weights", "weights.pt"), {}, "'weights.pt' is not a checkpoint",
    ),
    "safetensors that is text": (
        lambda: Path("w.safetensors").write_text("hello, this is text"),
        ("--weights", "w.safetensors"), {}, "'w.safetensors' is not a checkpoint",
    ),
    "weights that run code": (
        lambda: torch.save(small(), "weights.pt"),
        ("--weights", "weights.pt"), {}, "Python objects besides tensors",
    ),
    "weights without names": (
        lambda: torch.save(torch.ones(3), "weights.pt"),
        ("--weights", "weights.pt"), {}, "holds a Tensor, not a state_dict",
    ),
    "foreign weights": (
        foreign_weights,
        ("--weights", "weights.pt"), {}, "missing keys: 4.weight; foreign keys: head.weight",
    ),
    "weights of other shape": (
        wide_weights,
        ("--weights", "weights.pt"), {}, r"0.weight is \(7, 3, 3, 3\) instead of \(6, 3, 3, 3\)",
    ),
    "output of another kind": (None, ("--out", "scores.txt"), {}, "'scores.txt' must end in"),
    "output is a folder": (
        lambda: os.mkdir("s.csv"), ("--out", "s.csv"), {}, "'s.csv' is a folder"
    ),
    "output in no folder": (None, ("--out", "no/s.csv"), {}, "'no' is no folder"),
    "output below a file": (None, ("--out", "mine.py/s.csv"), {}, "'mine.py' is no folder"),
    "negative damping": (None, ("--damping", "-1"), {}, "damping=-1.0 must be"),
    "damping in words": (None, ("--damping", "little"), {}, "'little': give a number, or rel"),
    "negative relative damping": (None, ("--damping", "relative:-1"), {}, "c=-1.0 must be"),
    "rank of the wrong curvature": (
        None, ("--rank", "2", "--curvature", "fisher"), {}, "--rank belongs to logra"
    ),
    "damping of nothing": (
        None, ("--damping", "2", "--curvature", "identity"), {}, "no curvature to damp"
    ),
    "two perturbations": (
        None, ("--perturbation", "mine:halving", "--noise-std", "1"), {}, "leave them out"
    ),
    "negative noise": (None, ("--noise-std", "-1"), {}, "std=-1.0 must be"),
    "no draws": (None, ("--draws", "0"), {}, "draws=0 must be"),
    "device that is not there": (None, ("--device", "cuda:99"), {}, "'cuda:99' cannot be used"),
    "device that is no name": (None, ("--device", "gpu"), {}, "'gpu' cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    prepare, arguments, settings, message = REFUSED[case]
    if prepare is not None:
        prepare()
    before = outputs()
    assert run(*arguments, **settings) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("influence-ssl: error: ")
    assert re.search(message, line), line
    assert outputs() == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder refuses even root here")
def test_a_folder_without_write_permission_is_refused_before_the_work(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nobody, root included, can make a file there. The encoder would fail if it were asked.
    assert run("--out", "/proc/scores.npz", encoder="mine.py:shouting") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'/proc/scores.npz' cannot be written" in line


@pytest.mark.parametrize(
    "arguments",
    [[], ["score"], ["guess"], ["score", "--data"], ["score", "--curvature", "hessian"]],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("influence-ssl: error: ")
    assert "--help" in line


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


def test_help_fits_a_screen_and_its_example_runs(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main(["score", "--help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    _, _, example = "\n".join(lines).partition("example: influence-ssl ")
    # A checkpoint as it is published, with the classifier that an encoder does not have.
    save_file(timm.create_model("convnext_atto").state_dict(), "mine.safetensors")
    os.mkdir("photos")
    for name in listing()[:3]:
        shutil.copy(Path("images", name), "photos")
    assert main(example.replace("\\", "").split()) == 0
    assert len(Scores.load("scores.parquet")) == 3
    json.dumps(Scores.load("scores.parquet").provenance)
