"""Every input that the command must refuse: one line, exit code 2, nothing written."""

import errno
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import listing, outputs, run, small
from PIL import Image
from torch import nn

from influence_ssl.command.main import main


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


def copies_alone() -> None:
    for name in listing()[1:]:
        shutil.copy(Path("images", listing()[0]), Path("images", name))


def copies_in_other_files() -> None:
    """Equal pixels, compressed in different ways."""
    picture = Image.open(Path("images", listing()[0])).copy()
    for level, name in enumerate(listing()):
        picture.save(Path("images", name), compress_level=level % 10)
    assert len({Path("images", name).read_bytes() for name in listing()}) > 1


def not_square() -> None:
    for name in listing():
        Image.open(Path("images", name)).resize((12, 8)).save(Path("images", name))


def bomb() -> None:
    Image.new("1", (10_000, 9_000)).save("images/cat/big.png")


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
    "copies of one image": (
        copies_alone, (), {}, "all 24 images in 'images' are copies of 'cat/01.png'"
    ),
    "images of equal pixels": (copies_in_other_files, (), {}, "all 24 images in .* are copies of"),
    "images that are not square": (
        not_square, (), {},
        r"fails on the first images \(3 x 8 x 12\): RuntimeError: .*\(module, preprocess\)",
    ),
    "decompression bomb": (bomb, ("--strict",), {}, "'cat/big.png' in 'images': too large"),
    "mixed sizes": (
        mixed_sizes, (), {}, "'cat/01.png' is 10 x 10.*'small.png' is 5 x 6 pixels.*resize"
    ),
    "zip that escapes": (escaping_zip, (), {"data": "images.zip"}, r"'\.\./\.\./etc/a\.png'"),
    "zero representation": (
        zero_image, (), {"encoder": "mine.py:Zero"}, "clean image 'cat/01.png' is zero"
    ),
    "NaN weights": (None, (), {"encoder": "mine.py:not_finite"}, "'weight' has NaN"),
    "encoder returns a tuple": (None, (), {"encoder": "mine.py:Tuple"}, "tuple.*one tensor"),
    "layer that is never called": (
        None, ("--layers", "layer,spare"), {"encoder": "mine.py:Spare"},
        "'spare' is never called in the encoder's forward pass; leave it out",
    ),
    "layer that is not there": (
        None, ("--layers", "first"), {}, "'first' is not a Conv2d or Linear of the encoder; the",
    ),
    "layers to keep and to leave out": (
        None, ("--layers", "0,-4"), {}, "mixes names to keep and names to leave out",
    ),
    "encoder fails": (
        None, (), {"encoder": "mine.py:Broken"}, "RuntimeError: shapes do not fit; --traceback"
    ),
    "perturbation fails": (
        None, ("--perturbation", "mine.py:misspelt"), {},
        "error: perturbation <function misspelt .* fails with NameError: .*'noize'",
    ),
    "perturbation that is none": (
        None, ("--perturbation", "mine.py:small"), {},
        r"error: perturbation <function small .* fails with TypeError: .*p\(x, index, draw, seed\)",
    ),
    "encoder without values": (
        None, (), {"encoder": "mine.py:lazy"}, "'1.weight' of the encoder has no values yet"
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
    "output onto the list of images": (
        lambda: Path("l.csv").write_text("path\n" + "\n".join(f"images/{n}" for n in listing())),
        ("--out", "l.csv"), {"data": "l.csv"}, "'l.csv' would overwrite an input",
    ),
    "output onto the weights": (
        lambda: torch.save(small().state_dict(), "w.npz"),
        ("--weights", "w.npz", "--out", "w.npz"), {}, "'w.npz' would overwrite an input",
    ),
    "output in no folder": (None, ("--out", "no/s.csv"), {}, "'no' is not a folder"),
    "output below a file": (None, ("--out", "mine.py/s.csv"), {}, "'mine.py' is not a folder"),
    "negative damping": (None, ("--damping", "-1"), {}, "damping=-1.0 must be"),
    "damping in words": (None, ("--damping", "little"), {}, "'little': give a number, or rel"),
    "negative relative damping": (None, ("--damping", "relative:-1"), {}, "c=-1.0 must be"),
    "rank of the wrong curvature": (
        None, ("--rank", "2", "--curvature", "fisher"), {}, "--rank applies only to logra"
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
    # Where no batch was finished, nothing is kept; these two fail at the second.
    begun = settings.get("encoder") in ("mine.py:Broken", "mine.py:Exhausted")
    assert Path("scores.npz.partial").exists() == begun


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
    [
        [],
        ["score"],
        ["guess"],
        ["score", "--data"],
        ["score", "--curvature", "hessian"],
        ["score", "--seed", "9" * 20],
        ["compare", "a.npz", "b.npz", "--top", "-1"],
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("influence-ssl: error: ")
    assert "--help" in line


@pytest.mark.parametrize(
    ("command", "out", "suffixes"),
    [
        (["report"], "s.parquet", ".html"),
        (["report"], "r.txt", ".html"),
        (["report", "--out", "r.html", "--json"], "r.txt", ".json"),
        (["select", "--drop-highest", "1"], "mine.py", ".txt, .csv"),
    ],
)
def test_a_page_or_list_replaces_no_file_of_another_kind(
    work: Path, capsys: pytest.CaptureFixture[str], command: list[str], out: str, suffixes: str
) -> None:
    assert run() == 0
    Path(out).write_text("mine")
    capsys.readouterr()
    *words, option = command if command[-1] == "--json" else [*command, "--out"]
    assert main([*words, option, out, "--", "scores.npz"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{option} {out!r} must end in {suffixes}.")
    assert Path(out).read_text() == "mine"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_error(work: Path, unbuffered: str) -> None:
    assert run() == 0
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "influence_ssl", "select", "scores.npz", "--drop-highest", "1",
         "--out", "keep.txt"],
        stdout=writer, stderr=subprocess.PIPE, check=False,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
    assert len(Path("keep.txt").read_text().splitlines()) == 23


def test_an_option_of_another_command_names_the_help_of_this_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["report", "s.parquet", "--out", "r.html", "--draws", "4"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("unrecognized arguments: --draws 4; see influence-ssl report --help")


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_a_disk_that_is_full_at_the_end_loses_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def replaced(self: Path, target: Path) -> Path:
        return full() if target.name == f"s{suffix}" else replace(self, target)

    replace = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        assert run("--out", f"s{suffix}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no space left on the disk" in line
    assert f"kept in s{suffix}.partial; repeat the command to resume" in line
    assert outputs() == []
    # What is kept is all that the score needs: the encoder's layers are not asked again.
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        assert run("--out", f"s{suffix}") == 0
    assert not Path(f"s{suffix}.partial").exists()
