"""Common parts of the pages: templates that escape everything, a style sheet, numbers."""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from influence_ssl.errors import printable

# Controls, formats such as marks of direction, halves of characters.
_ODD = ("Cc", "Cf", "Cs")
_FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """The page that a template of this package renders from ``values``, with the style sheet."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.finalize = _shown
    environment.filters["fixed"] = _fixed
    environment.filters["short"] = _short
    environment.filters["percent"] = _percent
    environment.filters["count"] = count
    return environment.get_template(template).render(style=code("report.css"), **values)


def code(name: str) -> Markup:
    """A file of this package that goes into a page as it is."""
    return Markup((_FOLDER / name).read_text("utf-8"))


def _shown(value: Any) -> Any:
    """A text with control characters and direction marks shown as escapes, because they could make
    a name look like another or change the meaning of a sentence."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(
        printable(c) if unicodedata.category(c) in _ODD and c not in "\n\t" else c for c in value
    )


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        return _signed(f"{float(f'{value:.4g}'):,.{digits}f}")
    return _signed(f"{value:.4g}")


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else _signed(f"{value:.{digits}f}")


def _percent(value: float, digits: int = 0) -> str:
    """With a space before the sign, at which a line does not break."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def count(number: int, one: str, many: str | None = None) -> str:
    """A number and its noun, such as "1 image" or "2,000 images"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _signed(number: str) -> str:
    """With a minus sign, which a line does not break after."""
    return number.replace("-", "−")
