"""What the pages have in common: templates that escape everything, a style sheet, numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """The page that a template of this package makes of ``values``, with the style sheet."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["fixed"] = _fixed
    environment.filters["short"] = _short
    return environment.get_template(template).render(style=code("report.css"), **values)


def code(name: str) -> Markup:
    """A file of this package that goes into a page as it is."""
    return Markup((_FOLDER / name).read_text("utf-8"))


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        return _signed(f"{float(f'{value:.4g}'):,.{digits}f}")
    return _signed(f"{value:.4g}")


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else _signed(f"{value:.{digits}f}")


def _signed(number: str) -> str:
    """With a minus sign, which a line does not break after."""
    return number.replace("-", "−")
