"""What a part imports beside PyTorch and NumPy, and where it comes from without a network.

A machine with a card has PyTorch and need not have the rest. ``python -m influence_lab.gpu wheels``
downloads the rest elsewhere, in the locked versions; :func:`provide` installs from there what is
missing, into a folder of its own that comes last on the path, and :func:`provide_peers` the other
libraries. This module needs Python alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

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


class Library(NamedTuple):
    """What a script imports, and the distributions that may be brought along for it."""

    modules: tuple[str, ...]
    distributions: tuple[str, ...] = ()

    def absent(self) -> list[str]:
        """The modules that cannot be imported here."""
        return [name for name in self.modules if importlib.util.find_spec(name) is None]


PEERS = {
    "ours": Library(("influence_ssl",)),
    "logix_ai": Library(("logix", "einops", "yaml"), ("logix-ai", "einops", "pyyaml")),
    "kronfluence_ekfac": Library(
        ("kronfluence", "accelerate", "einconv"),
        ("kronfluence", "accelerate", "einops", "einconv", "opt-einsum", "pyyaml"),
    ),
    "traker_trak": Library(("trak",), ("traker",)),
    "captum_tracin": Library(
        ("captum", "matplotlib"),
        (
            "captum", "matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pyparsing",
            "python-dateutil", "six",
        ),
    ),
    "captum_arnoldi": Library(("captum", "matplotlib")),
    # SciPy's wheel is too large to be brought along.
    "dattri_datainf": Library(("dattri", "scipy"), ("dattri",)),
}  # fmt: skip
"""Scripts of other libraries in the order of their worth. Without its modules one is left out."""

BUILT = ("traker",)
"""Pure Python of which the package index has no wheel; it is built here."""

# The oldest system whose wheels are taken has glibc 2.17, the newest 2.28.
PLATFORMS = tuple(f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_17", "2014"))


LINUX = {
    "platform_machine": "x86_64", "sys_platform": "linux", "platform_system": "Linux",
    "os_name": "posix", "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}  # fmt: skip
"""What the lock file's conditions ask for, on the machine with a card."""


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
        if reason := _installed(distributions, wheels, target):
            raise Missing(
                f"{', '.join(names)}: not installed here, nor to be had from {wheels} ({reason}); "
                "run `make gpu-wheels` where there is a network, and bring that folder"
            )
        _on_path(target)
    return names


def provide_peers(wheels: Path, target: Path) -> list[str]:
    """Make the scripts of :data:`PEERS` run where their wheels are there; returns the others."""
    without = []
    if target.is_dir():
        _on_path(target)
    for name, library in PEERS.items():
        if library.absent() and library.distributions:
            _installed(library.distributions, wheels, target)
            _on_path(target)
        if library.absent():
            without.append(name)
    return without


def environment() -> dict[str, str]:
    """The variables of a process that finds this tree and what is installed beside it."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "core"), *filter(None, known)])}


def _installed(distributions: Iterable[str], wheels: Path, target: Path) -> str:
    """Install from the wheels alone; returns why that failed, else nothing."""
    return _pip(
        "install", "--root-user-action=ignore", "--no-index", "--no-compile",
        "--find-links", str(wheels), "--target", str(target), *distributions,
    )  # fmt: skip


def _pip(command: str, *options: str) -> str:
    """Run pip without dependencies; returns why it failed, else nothing.

    The metadata of some peers refuse versions of Python with which they run.
    """
    always = ("--disable-pip-version-check", "-q", "--no-deps", "--ignore-requires-python")
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *always, *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return (done.stderr.strip().splitlines() or ["pip says nothing"])[-1] * bool(done.returncode)


def _on_path(target: Path) -> None:
    # Last: what the machine has of its own fits its PyTorch.
    place = str(target.resolve())
    known = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    for path in (sys.path, known):
        if place not in path:
            path.append(place)
    os.environ["PYTHONPATH"] = os.pathsep.join(known)
    importlib.invalidate_caches()


def locked(python: str) -> dict[str, str]:
    """The locked versions for a version of Python, of this project and of the peers."""
    from packaging.requirements import Requirement

    found = {}
    for path in (ROOT / "requirements.lock", ROOT / "benchmarks" / "peers" / "requirements.txt"):
        for line in re.findall(r"^\w.*", path.read_text(encoding="utf-8"), re.MULTILINE):
            one = Requirement(line.rstrip("\\ "))
            there = {"python_full_version": f"{python}.0", "python_version": python}
            if one.marker is None or one.marker.evaluate(LINUX | there):
                found[one.name] = str(one.specifier).removeprefix("==")
    return found


def fetch(wheels: Path, python: str) -> list[str]:
    """Download all wheels for this version of Python on 64-bit Linux, and note the commit.

    Returns the names of the files. Raises :class:`Missing` where the package index has none.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.glob("*.whl"):
        old.unlink()
    versions = locked(python)
    names = set(chain(*NEEDED.values(), *(one.distributions for one in PEERS.values())))
    wanted = [f"{one}=={versions[one]}" for one in sorted(names - set(BUILT))]
    platforms = [f"--platform={name}" for name in PLATFORMS]
    built = [f"{one}=={versions[one]}" for one in BUILT]
    reason = _pip(
        "download", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp",
        *platforms, "--dest", str(wheels), *wanted,
    ) or _pip("wheel", "--wheel-dir", str(wheels), *built)  # fmt: skip
    if reason:
        raise Missing(f"wheels for Python {python} cannot be downloaded: {reason}")
    said = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    (wheels / COMMIT).write_text(said.stdout.strip().replace("-dirty", "+changes") or "unknown")
    return sorted(path.name for path in wheels.glob("*.whl"))
