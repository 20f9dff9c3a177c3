"""What a part imports beside PyTorch and NumPy, and where it comes from without a network.

A machine with a card has PyTorch and need not have the rest. ``python -m influence_lab.gpu wheels``
downloads the rest elsewhere, in the locked versions; :func:`provide` installs from there what is
missing, into a folder of its own that comes last on the path. This module needs Python alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
COMMIT = "commit"

THERE = ("torch", "numpy")
NEEDED = {
    "jaxtyping": ("jaxtyping", "wadler-lindig"),
    "safetensors": ("safetensors",),
    "psutil": ("psutil",),
    "tqdm": ("tqdm",),
    "PIL": ("pillow",),
    "simplejpeg": ("simplejpeg",),
    # The tests: their configuration asks for the last two.
    "pytest": ("pytest", "iniconfig", "packaging", "pluggy", "pygments"),
    "pytest_timeout": ("pytest-timeout",),
    "beartype": ("beartype",),
}
"""Modules by name, each with the distributions that bring it."""

# The oldest system whose wheels are taken has glibc 2.17, the newest 2.28.
PLATFORMS = tuple(f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_17", "2014"))


class Missing(Exception):
    """A package that neither the machine nor the folder of wheels has."""


def absent() -> list[str]:
    """The modules of :data:`NEEDED` that cannot be imported here."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def provide(wheels: Path, target: Path) -> list[str]:
    """Make every module of :data:`NEEDED` importable, here and in processes that are started.

    Returns the modules that were installed, from ``wheels`` into ``target``. Raises
    :class:`Missing` where a wheel is not there or PyTorch is not.
    """
    for name in THERE:
        if importlib.util.find_spec(name) is None:
            raise Missing(f"{sys.executable} has no {name}; run this with a Python that has it")
    if target.is_dir():
        _on_path(target)
    names = absent()
    if names:
        distributions = [one for name in names for one in NEEDED[name]]
        done = subprocess.run(
            [
                sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q",
                "--root-user-action=ignore", "--no-index", "--no-deps", "--no-compile",
                "--find-links", str(wheels), "--target", str(target), *distributions,
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise Missing(
                f"{', '.join(names)}: not installed here, nor to be had from {wheels} ({reason}); "
                "run `make gpu-wheels` where there is a network, and bring that folder"
            )
        _on_path(target)
    return names


def _on_path(target: Path) -> None:
    # Last: what the machine has of its own fits its PyTorch.
    place = str(target.resolve())
    if place not in sys.path:
        sys.path.append(place)
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, known), place])
    importlib.invalidate_caches()


def fetch(wheels: Path, python: str) -> list[str]:
    """Download all wheels for this version of Python on 64-bit Linux, and note the commit.

    Returns the names of the files. Raises :class:`Missing` where the package index has none.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.glob("*.whl"):
        old.unlink()
    locked = dict(
        re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    )
    wanted = [f"{one}=={locked[one]}" for parts in NEEDED.values() for one in parts]
    platforms = [f"--platform={name}" for name in PLATFORMS]
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-q",
            "--no-deps", "--only-binary=:all:", f"--python-version={python}",
            "--implementation=cp", *platforms, "--dest", str(wheels), *wanted,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise Missing(f"wheels for Python {python} cannot be downloaded: {reason}")
    said = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    (wheels / COMMIT).write_text(said.stdout.strip().replace("-dirty", "+changes") or "unknown")
    return sorted(path.name for path in wheels.glob("*.whl"))
