"""Checkpoint files, read as tensors by name and without running any code in them."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from influence_ssl.errors import InfluenceOSError, InfluenceValueError

# Before torch.save wrote zips, it wrote this many pickles, then the numbers.
_PICKLES = 5
_LONGEST = 1000
_GIVE = "give a .safetensors file or what torch.save(encoder.state_dict(), FILE) wrote."


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a dictionary that ``torch.save`` wrote.

    A tensor in nested dictionaries is named by their keys, joined by dots. Names start at the
    innermost dictionary that holds all tensors other than single numbers, so that those in
    ``{"epoch": 3, "state_dict": {...}}`` do not begin with ``state_dict``. Lists, values other than
    tensors and dictionaries whose keys are not texts (an optimiser's state) are left out. Raises
    :class:`InfluenceError` if the file cannot be read as tensors and plain values, holds quantised
    layers or has no tensor with a name.
    """
    _refuse_by_name(path)
    content = _read(path)
    tensors = dict(_named(content, ""))
    if any(name.endswith("_packed_params") for name in tensors):
        raise InfluenceValueError(
            f"--weights {str(path)!r} holds quantised layers, whose weights are integers; give "
            "the checkpoint from before the quantisation."
        )
    found = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not found:
        what = "no tensor with a name" if isinstance(content, Mapping) else kind(content)
        raise InfluenceValueError(
            f"--weights {str(path)!r} holds {what}, not a state_dict; give what "
            "torch.save(encoder.state_dict(), FILE) wrote."
        )
    common = _common_container(content)
    return {name.removeprefix(common): value for name, value in found.items()}


def kind(value: object) -> str:
    """The type of a value, for a message."""
    if isinstance(value, tuple):
        return f"a tuple ({', '.join(type(part).__name__ for part in value)})"
    return f"a {type(value).__name__}"


def _refuse_by_name(path: Path) -> None:
    if path.is_dir():
        raise InfluenceOSError(f"--weights {str(path)!r} is a folder; name a checkpoint in it.")
    if not path.is_file():
        raise InfluenceOSError(f"--weights {str(path)!r}: there is no such file.")
    if path.name.endswith(".index.json"):
        raise InfluenceValueError(
            f"--weights {str(path)!r} is the index of a checkpoint in several files; join them "
            "into one, for instance with torch.save(encoder.state_dict(), FILE)."
        )
    if re.search(r"-\d+-of-(?!0*1\.)\d+\.\w+$", path.name):
        raise InfluenceValueError(
            f"--weights {str(path)!r} is one of several files of a checkpoint; join them into one, "
            "for instance with torch.save(encoder.state_dict(), FILE)."
        )


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _refuse_long_names(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise InfluenceValueError(
            f"--weights {str(path)!r} needs safetensors; pip install 'influence-ssl[report]'."
        ) from error
    except PermissionError as error:
        raise InfluenceOSError(f"--weights {str(path)!r}: {error.strerror}.") from error
    # Readers of unknown bytes may raise anything.
    except Exception as error:
        what, give = "is not a checkpoint", _GIVE
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            what = f"holds Python objects besides tensors ({found[1]}), which could run any code"
            give = (
                "if you trust its source, save only the state_dict from "
                "torch.load(FILE, weights_only=False)."
            )
        elif "TorchScript" in str(error):
            what = "is a TorchScript archive, which holds code"
            give = "save the state_dict() of what torch.jit.load(FILE) returns."
        raise InfluenceValueError(f"--weights {str(path)!r} {what}; {give}") from error


def _refuse_long_names(path: Path) -> None:
    """Raise if a pickle holds a long object name, because the time that PyTorch takes for its
    message grows with the square of the length: hours for a megabyte."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            for _ in range(_PICKLES):
                _check_names(file)
            return
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    _check_names(archive.open(name))


def _check_names(file: IO[bytes]) -> None:
    try:
        for code, argument, _ in pickletools.genops(file):
            if code.name in ("GLOBAL", "INST") and len(str(argument)) > _LONGEST:
                raise ValueError("the name of an object is too long")
    except ValueError as error:
        # The file ends early; torch.load reports what is wrong with it.
        if "exhausted" not in str(error):
            raise


def _named(content: object, prefix: str) -> Iterator[tuple[str, object]]:
    """Every leaf of nested dictionaries, by the path of its keys."""
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _common_container(content: Any) -> str:
    """The path of the innermost dictionary that holds all named tensors."""
    common = ""
    while True:
        # A single number, such as the best accuracy that a callback stored, is not a weight.
        holders = [
            key
            for key, value in content.items()
            if isinstance(key, str)
            and any(
                isinstance(leaf, Tensor) and leaf.ndim > 0 for _, leaf in _named({key: value}, "")
            )
        ]
        if len(holders) != 1 or isinstance(content[holders[0]], Tensor):
            return common
        common += f"{holders[0]}."
        content = content[holders[0]]
