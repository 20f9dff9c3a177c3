"""A release holds what it needs and no more, and the library runs where no extra is installed."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Put in front of what runs without any extra.
REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {
            "PIL", "jinja2", "matplotlib", "pandas", "pyarrow", "scipy", "sklearn",
            "sympy", "timm", "torchvision", "yaml", "influence_lab",
        }:
            raise ImportError(f"{name} is an extra")

sys.meta_path.insert(0, Refuse())
"""

SCORE = """
import torch
import influence_ssl

encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
scores = influence_ssl.score(encoder, torch.randn(8, 3, 2, 2), progress=False)
scores.save(sys.argv[1])
assert (influence_ssl.Scores.load(sys.argv[1]).values == scores.values).all()
"""

HELP = """
from influence_ssl.command import main

assert main.__file__.startswith(sys.argv[1]), main.__file__
main.main(["--help"])
"""

BUILT_IN = """
import torch
from influence_ssl.encoders import builtin

assert builtin.__file__.startswith(sys.argv[1]), builtin.__file__
encoder, _ = builtin.from_package("builtin:cifar-simclr")
print(tuple(encoder(torch.zeros(1, 3, 32, 32)).shape))
"""


def run(code: str, *arguments: str, **settings: object) -> str:
    command = [sys.executable, "-W", "error", "-c", REFUSE + code, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **settings)
    return done.stdout


def test_the_library_needs_no_extra(tmp_path: Path) -> None:
    run(SCORE, str(tmp_path / "scores.npz"), cwd=tmp_path)


def tracked() -> set[str]:
    found = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    return set(found)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist of a copy of the tree, and the wheel of that sdist, as ``.ci/release`` builds."""
    folder = tmp_path_factory.mktemp("release")
    for name in tracked():
        if not name.startswith(("book/", "requirements.lock")):
            copy = folder / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    build = "import sys, setuptools.build_meta as build; build.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, folder],
        cwd=folder / "source", check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    (sdist,) = folder.glob("*.tar.gz")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "-w", folder, sdist],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="module")
def wheel(release: dict[str, Path]) -> Path:
    return release["wheel"]


def test_the_wheel_holds_the_packages_and_the_licences_and_no_more(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert {name.rpartition("/")[2] for name in about} >= {"LICENSE", "LICENSE-TEXT", "METADATA"}
    packages = {name.removeprefix("core/") for name in tracked() if name.startswith("core/")}
    assert names - about == packages


def test_the_sdist_holds_the_packages_and_what_builds_them_and_no_more(
    release: dict[str, Path],
) -> None:
    with tarfile.open(release["sdist"]) as archive:
        files = [member.name for member in archive.getmembers() if member.isfile()]
    names = {name.partition("/")[2] for name in files if ".egg-info/" not in name}
    packages = {name for name in tracked() if name.startswith("core/")}
    about = {"LICENSE", "LICENSE-TEXT", "MANIFEST.in", "README.md", "pyproject.toml"}
    assert names == packages | about | {"PKG-INFO", "setup.cfg"}


def test_the_command_s_help_and_its_encoder_run_from_the_wheel_alone(
    wheel: Path, tmp_path: Path
) -> None:
    place = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index",
         "--target", str(place), str(wheel)],
        check=True,
    )  # fmt: skip
    alone = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(place)}}
    shape, shown = run(BUILT_IN + HELP, str(place), **alone).split("\n", 1)
    assert shape == "(1, 128)"
    assert "score" in shown
    script = [sys.executable, place / "bin" / "influence-ssl", "--help"]
    shown = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True, **alone).stdout
    assert "Label-free influence" in shown
