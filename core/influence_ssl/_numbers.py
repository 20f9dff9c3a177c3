"""Settings as Python's own numbers, and what they may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
from torch import Tensor

from influence_ssl.errors import InfluenceTypeError


def plain(settings: Any) -> None:
    """Replace numbers of NumPy and PyTorch among a frozen data class's fields, for the files."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
            object.__setattr__(settings, field.name, value.item())


def refuse_no_number(settings: Any, *names: str) -> None:
    """Raise unless these fields are numbers."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InfluenceTypeError(
                f"{type(settings).__name__}: {name}={value!r:.60} must be a number."
            )


def is_one_of(value: Any, words: Collection[str]) -> bool:
    """Whether it is one of these words; an array, for one, has no answer to ``in``."""
    return isinstance(value, str) and value in words
