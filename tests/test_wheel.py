"""The wheel holds what it needs, and the library runs where no extra is installed."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {
            "PIL", "jinja2", "matplotlib", "pandas", "pyarrow", "scipy", "sklearn",
            "sympy", "timm", "torchvision", "yaml", "influence_lab",
        }:
            raise ImportError(f"{name} is an extra")

sys.meta_path.insert(0, Refuse())
import torch
import influence_ssl

encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
scores = influence_ssl.score(encoder, torch.randn(8, 3, 2, 2), progress=False)
scores.save(sys.argv[1])
assert (influence_ssl.Scores.load(sys.argv[1]).values == scores.values).all()
"""


def test_the_library_needs_no_extra(tmp_path):
    command = [sys.executable, "-W", "error", "-c", ALONE, str(tmp_path / "scores.npz")]
    subprocess.run(command, check=True, cwd=tmp_path)


def test_the_wheel_holds_the_report_s_files_and_the_licences(tmp_path):
    # Built from a copy, so that nothing is left in the working tree.
    listed = subprocess.run(
        ["git", "ls-files", "core", "pyproject.toml", "README.md", "LICENSE", "LICENSE-TEXT"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    for name in listed:
        copy = tmp_path / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "-w", str(tmp_path), str(tmp_path / "source")],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {name.removeprefix("core/") for name in listed if name.startswith("core/")}
    assert expected <= names
    assert any(name.endswith("LICENSE-TEXT") for name in names)
