"""The options of ``influence-ssl score``, turned into arguments of a scorer."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from influence_ssl.curvature import Curvature, EmpiricalFisher, Identity, LoGra, Relative
from influence_ssl.encoders.loading import import_function
from influence_ssl.errors import InfluenceOSError, InfluenceValueError
from influence_ssl.files.tables import columns
from influence_ssl.perturbations import GaussianNoise

# What a table is, by a column that no other has.
SCORES, CHECK, TRACE = "scores", "the results of check", "traced queries"
_KINDS = {"score": SCORES, "flags": CHECK, "same_pixels": TRACE}
_NEEDS = {".npz": (), ".csv": ("pandas",), ".parquet": ("pandas", "pyarrow")}


def perturbation(options: argparse.Namespace) -> Callable[..., Tensor]:
    """The noise, or the user's function."""
    noise = {"mean": options.noise_mean, "std": options.noise_std}
    given = {name: value for name, value in noise.items() if value is not None}
    if options.perturbation is None:
        return GaussianNoise(**given)
    if given:
        raise InfluenceValueError(
            "--noise-mean and --noise-std apply only to Gaussian noise; leave them out with "
            "--perturbation."
        )
    return import_function(options.perturbation, "--perturbation")


def curvature(options: argparse.Namespace) -> Curvature:
    """The curvature with its rank and damping."""
    damping: dict[str, Any] = (
        {} if options.damping is None else {"damping": _damping(options.damping)}
    )
    rank = {} if options.rank is None else {"rank": options.rank}
    if rank and options.curvature != "logra":
        raise InfluenceValueError("--rank applies only to logra; leave it out.")
    if options.curvature == "logra":
        return LoGra(**rank, **damping, seed=options.seed)
    if options.curvature == "fisher":
        return EmpiricalFisher(**damping)
    if damping:
        raise InfluenceValueError("--damping: identity has no curvature to damp; leave it out.")
    return Identity()


def _damping(text: str) -> float | Relative:
    number = text.removeprefix("relative:")
    try:
        value = float(number)
    except ValueError as error:
        raise InfluenceValueError(
            f"--damping {text!r}: give a number, or relative:C, such as relative:0.1."
        ) from error
    return value if number == text else Relative(value)


def device(name: str | None) -> torch.device | None:
    """The device; ``None`` stands for the encoder's own."""
    if name is None:
        return torch.device("cuda") if torch.cuda.is_available() else None
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InfluenceValueError(
            f"--device {name!r} cannot be used here: {str(error).splitlines()[0].split('. ')[0]}; "
            "leave it out, or use cpu."
        ) from error
    return torch.device(name)


def check_output(
    path: Path, needs: Mapping[str, tuple[str, ...]] = _NEEDS, option: str = "--out"
) -> None:
    """Raise if an output cannot be written; ``needs``: the packages behind each suffix."""
    named = f"{option} {str(path)!r}"
    if path.suffix not in needs:
        raise InfluenceValueError(f"{named} must end in {', '.join(needs)}.")
    for package in needs[path.suffix]:
        if importlib.util.find_spec(package) is None:
            instead = ", or write .npz." if ".npz" in needs else "."
            raise InfluenceValueError(
                f"{named} needs {package}; pip install 'influence-ssl[report]'{instead}"
            )
    if path.is_dir():
        raise InfluenceOSError(f"{named} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise InfluenceOSError(f"{named}: {str(path.parent)!r} is not a folder; create it.")
    try:
        tempfile.NamedTemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InfluenceOSError(
            f"{named} cannot be written: {error.strerror}; choose another folder."
        ) from error


def refuse_other_results(path: Path, own: str | None) -> None:
    """Raise if ``--out`` is a file of results of another kind than ``own``, which it replaces."""
    found = columns(path)
    for column, kind in _KINDS.items():
        if column in found and kind != own:
            raise InfluenceValueError(
                f"--out {str(path)!r} holds {kind}, which would be lost; name another file."
            )
