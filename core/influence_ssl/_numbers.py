"""NumPy's numbers as Python's own."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


def plain(settings: Any) -> None:
    """Replace NumPy's numbers among the fields of a frozen data class, as no file holds them."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(settings, field.name, value.item())
