"""How nbval compares: text, formulas and glued values, numbers to six significant digits."""

from __future__ import annotations

import re

import pytest

# What cells print is compared; pictures, tables and the names of objects are not.
_PICTURES = ("text/plain", "image/svg+xml", "text/html", "text/markdown", "application/javascript")
_NUMBER = r"(?<![\w.])[-+]?\d+(?:\.\d+(?:[eE][-+]?\d+)?|[eE][-+]?\d+)(?![\w.]*\d)"


def _round(match: re.Match[str]) -> str:
    # Values glued into prose are recorded in full; their last digits differ between processors.
    return f"{float(match.group()):.6g}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        notebook = item.parent
        if hasattr(notebook, "skip_compare") and hasattr(notebook, "sanitize_patterns"):
            notebook.skip_compare = (*notebook.skip_compare, *_PICTURES)
            notebook.sanitize_patterns[_NUMBER] = _round
