"""When two outputs of a cell say the same: text exactly, numbers to a tenth of a per cent.

Two processors sum in different orders, so the last digits of what a chapter computes differ between
them, and a value near the edge of two roundings is printed either way. Hence a tolerance instead of
rounded text. It stays below the 1 % that has to be noticed in every number.

A training amplifies those last digits without a bound. A cell that shows what a training of its
chapter came to is tagged ``trained``: its words are compared, its numbers are not. What the chapter
says of such numbers is asserted in the chapter itself, so that it holds wherever it runs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

RELATIVE = 1e-3
"""Numbers may differ by this share of the larger one."""
TRAINED = "trained"
"""The tag of a cell whose numbers depend on a training in its chapter."""
KINDS = ("text/plain", "text/latex", "application/papermill.record/text/plain")
"""What is compared, besides what a cell prints: values of cells, formulas, values glued into prose.

Pictures, tables and pages are not, nor the names of such objects, which stand for them.
"""

_OBJECT = re.compile(r"<[^\n]*>")
# No part of a name, a version or a hash.
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.]*\d)")


def texts(outputs: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What is compared of a cell's outputs, in order: the kind of each, and its text.

    What a cell prints is one text, whether the kernel sent it in one piece or in several.
    """
    found: list[tuple[str, str]] = []
    for output in outputs:
        if "data" in output:
            data = {kind: _text(output["data"][kind]) for kind in KINDS if kind in output["data"]}
            found += [part for part in data.items() if not _OBJECT.fullmatch(part[1])]
        elif "text" in output:
            kind, text = output.get("name", "stream"), _text(output["text"])
            at = next((i for i, (known, _) in enumerate(found) if known == kind), None)
            if at is None:
                found.append((kind, text))
            else:
                found[at] = (kind, found[at][1] + text)
        else:
            found.append((output["output_type"], output.get("ename", "")))
    return found


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def difference(
    reference: Iterable[Mapping[str, Any]],
    found: Iterable[Mapping[str, Any]],
    numbers: bool = True,
) -> str | None:
    """The first difference between the outputs of a cell, in words, or ``None``.

    Without ``numbers`` any number may stand where the reference has one.
    """
    expected, actual = texts(reference), texts(found)
    if [kind for kind, _ in expected] != [kind for kind, _ in actual]:
        kinds = [", ".join(kind for kind, _ in part) or "nothing" for part in (expected, actual)]
        return f"the reference has {kinds[0]}; the cell gave {kinds[1]}"
    for (kind, one), (_, other) in zip(expected, actual, strict=True):
        if one != other and (where := _where(one, other, numbers)):
            return f"{kind}: {where}"
    return None


def _where(one: str, other: str, numbers: bool) -> str | None:
    for row, (left, right) in enumerate(
        itertools.zip_longest(one.splitlines(), other.splitlines(), fillvalue="")
    ):
        if not same_line(left, right, numbers):
            return f"line {row + 1}\n  reference: {left}\n  now:       {right}"
    return None


def same_line(one: str, other: str, numbers: bool = True) -> bool:
    """Whether the words agree, spaces apart, and with ``numbers`` each number with the other's."""
    words = ([part.split() for part in NUMBER.split(text)] for text in (one, other))
    if next(words) != next(words):
        return False
    return not numbers or all(map(same_number, NUMBER.findall(one), NUMBER.findall(other)))


def same_number(one: str, other: str) -> bool:
    """Whole numbers exactly. Others to :data:`RELATIVE`, or to one unit of the last digit.

    A unit counts only where it is below half a per cent of the number: then a change of 1 % moves
    what is printed by more than that. Of two precisions the finer one counts.
    """
    if one == other:
        return True
    if one.lstrip("+-").isdigit() and other.lstrip("+-").isdigit():
        return int(one) == int(other)
    a, b = float(one), float(other)
    unit = min(_unit(one), _unit(other))
    least = min(abs(a), abs(b))
    rounding = 1.0001 * unit if unit < 0.005 * least else 0.0
    return abs(a - b) <= max(RELATIVE * max(abs(a), abs(b)), rounding)


def _unit(number: str) -> float:
    """What one more in the last printed digit adds."""
    mantissa, _, exponent = number.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
