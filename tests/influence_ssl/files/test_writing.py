"""Files that are there whole or not at all, whatever happens while they are written."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from influence_ssl import InfluenceError
from influence_ssl.files.writing import replacing, replacing_folder


def test_after_an_error_the_earlier_file_stands_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def write(error: Exception) -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            assert temporary.suffix == ".txt"
            raise error

    with pytest.raises(ZeroDivisionError):
        write(ZeroDivisionError())
    with pytest.raises(InfluenceError, match=r"a.txt' cannot be written \(No space left"):
        write(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(RuntimeError, match="of another kind"):
        write(RuntimeError("of another kind"))
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.read_text() == "before"


def test_a_full_disk_is_told_from_other_errors_of_libraries(tmp_path: Path) -> None:
    """torch.save's writer and safetensors have errors of their own for it."""
    for error in (RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 0"),):
        with (
            pytest.raises(InfluenceError, match="inline_container"),
            replacing(tmp_path / "checkpoint.pt"),
        ):
            raise error


def test_everyone_may_read_what_safetensors_wrote(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    mask = os.umask(0o022)
    try:
        with replacing(path) as temporary:
            save_file({"x": torch.ones(2)}, temporary)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_folders_are_made_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "a.txt"
    with pytest.raises(InfluenceError, match="cannot be written"), replacing(path) as temporary:
        temporary.write_text("x")
    assert not path.parent.exists()
    with replacing(path, parents=True) as temporary:
        temporary.write_text("x")
    assert path.read_text() == "x"


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    (elsewhere / "folder").mkdir(parents=True)
    here.mkdir()
    (elsewhere / "folder" / "old").write_text("old")
    (here / "table.csv").symlink_to(elsewhere / "versioned")
    (here / "folder").symlink_to(elsewhere / "folder")
    for text in ("first", "second"):  # The link leads nowhere at first.
        with replacing(here / "table.csv") as temporary:
            assert temporary.suffix == ".csv"
            temporary.write_text(text)
        with replacing_folder(here / "folder") as temporary:
            (temporary / "new").write_text(text)
        assert (elsewhere / "versioned").read_text() == text
        assert (elsewhere / "folder" / "new").read_text() == text
        assert (here / "table.csv").is_symlink()
        assert (here / "folder").is_symlink()
        assert sorted(os.listdir(here)) == ["folder", "table.csv"]
        assert sorted(os.listdir(elsewhere)) == ["folder", "versioned"]
        assert os.listdir(elsewhere / "folder") == ["new"]


def test_what_is_not_a_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "folder").mkdir()
    for path in (pipe, tmp_path / "folder", Path("/dev/null")):
        with (
            pytest.raises(InfluenceError, match=f"'{path}' is not a file"),
            replacing(path) as temporary,
        ):
            temporary.write_text("x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]
