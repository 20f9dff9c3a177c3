"""The help of each command fits a screen, and its examples run."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from commands import listing
from PIL import Image

from influence_ssl import Scores
from influence_ssl.command.main import main

COMMANDS = ("check", "score", "report", "compare", "select", "trace")
MINE = """
from torch import nn


def encoder():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten())
"""


@pytest.fixture
def photos(work: Path) -> Path:
    """Seven photographs, of which one is there twice, and two queries."""
    (work / "photos").mkdir()
    for name in listing()[:6]:
        shutil.copy(work / "images" / name, work / "photos")
    shutil.copy(next((work / "photos").iterdir()), work / "photos" / "again.png")
    (work / "queries").mkdir()
    for name in listing()[6:8]:
        shutil.copy(work / "images" / name, work / "queries")
    (work / "mine.py").write_text(MINE)
    return work


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "200"])
@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits_a_screen(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
    command: tuple[str, ...],
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = help_of(capsys, *command).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))
    assert capsys.readouterr().out == f"influence-ssl {project['project']['version']}\n"


def test_each_example_runs(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = ["score", "--data", "photos", "--encoder", "mine.py:encoder"]
    assert main([*score, "--seed", "1", "--out", "other.parquet", "--keep", "kept"]) == 0
    for command in COMMANDS:
        (example,) = re.findall(r"^example: influence-ssl (.*)$", help_of(capsys, command), re.M)
        assert example.startswith(f"{command} ")
        assert main(example.split()) == 0, example
    assert len(Scores.load("scores.parquet")) == 7
    assert len(Path("keep.txt").read_text().splitlines()) == 6
    assert Path("trace.html").read_text().count('<article class="query"') == 2


def test_the_three_commands_run(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^  influence-ssl (.*)$", help_of(capsys), re.M)
    assert len(commands) == 3
    for command in commands:
        assert main(command.split()) == 0, command
    assert "again.png" in Path("report.html").read_text()
    kept = Path("keep.txt").read_text().splitlines()
    digests = {Image.open(Path("photos", name)).tobytes() for name in kept}
    assert len(kept) == len(digests) == 6
