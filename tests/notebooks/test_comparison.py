"""Outputs agree to 0.1 % and no change of 1 % passes, in any number of any reference."""

from __future__ import annotations

import jupytext
import pytest

from comparison import NUMBER, TRAINED, difference, same_line, same_number, texts
from reference import ROOT, chapters, code_cells, read, reference_path

CHAPTERS = {str(path.relative_to(ROOT / "book")): path for path in chapters()}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0.52", "0.52", True),
        ("74.6875", "74.6849", True),
        ("74.69", "75.43", False),
        ("1.000e-05", "1.0009e-05", True),
        ("1.000e-05", "1.010e-05", False),
        ("1e-08", "2e-08", False),
        # One unit of the last digit: where it is less than half a per cent, and only then.
        ("2.344", "2.345", True),
        ("2.34", "2.35", True),
        ("2.34", "2.36", False),
        ("1.23", "1.24", False),
        ("0.52", "0.53", False),
        ("0.00", "0.01", False),
        # A float that is printed without its zeros has the precision of the other one.
        ("0.5", "0.500001", True),
        ("0.5", "0.505", False),
        ("0.000", "-0.000", True),
        ("-0.52", "0.52", False),
        ("512", "513", False),
        ("512", "0512", True),
    ],
)
def test_numbers(one: str, other: str, same: bool) -> None:
    assert same_number(one, other) == same_number(other, one) == same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("rank 9.9996 of 12", "rank 10.000 of 12", True),
        ("rank 9.9996 of 12", "rank 9.9996 of 13", False),
        ("a  9.9996 b", "a 10.000 b", True),
        ("a 0.5 b", "c 0.5 b", False),
        ("0.5", "0.5 0.5", False),
        ("[3 1 2]", "[1 3 2]", False),
        # Not numbers: hashes, versions, names.
        ("code 4e10c18a3e40", "code 4e10c18a3e41", False),
        ("torch 2.15.0", "torch 2.15.1", False),
        ("layer4.0.conv1", "layer4.1.conv1", False),
        ("0.71x, 12.345%", "0.71x, 12.344%", True),
        ("0.5-0.7000", "0.5-0.7700", False),
    ],
)
def test_lines(one: str, other: str, same: bool) -> None:
    assert same_line(one, other) == same_line(other, one) == same


def stream(*pieces: str) -> list[dict[str, str]]:
    return [{"output_type": "stream", "name": "stdout", "text": piece} for piece in pieces]


def shown(text: str, kind: str = "text/plain") -> list[dict]:
    return [{"output_type": "display_data", "data": {kind: text, "image/png": "AAAA"}}]


def test_outputs() -> None:
    assert difference(stream("a 1.000\nb\n"), stream("a ", "1.0001\n", "b\n")) is None
    assert difference(shown("<Figure size 640x480>"), []) is None
    assert difference(shown("[1, 2]"), shown("[1, 2]")) is None
    assert "line 2\n  reference: b\n  now:       c" in str(
        difference(stream("a\nb\n"), stream("a\nc\n"))
    )
    for reference, found in (
        (stream("a\n"), []),
        ([], stream("a\n")),
        (stream("a\n"), stream("a\nb\n")),
        (stream("a\n"), shown("a\n")),
        (shown("[1, 2]"), shown("[1, 3]")),
        (shown("3 x^2", "text/latex"), shown("4 x^3", "text/latex")),
        (shown("0.500", "application/papermill.record/text/plain"),
         shown("0.505", "application/papermill.record/text/plain")),
    ):  # fmt: skip
        assert difference(reference, found)


def test_outputs_of_a_training() -> None:
    """Any number may stand where the reference has one, and nothing else may change."""
    reference = stream("a 1.000, 3 of 4\n")
    assert difference(reference, stream("a 7.2, 1 of 4\n"), numbers=False) is None
    for found in ("b 1.000, 3 of 4\n", "a 1.000, 3\n", "a 1.000, 3 of 4\nb\n"):
        assert difference(reference, stream(found), numbers=False)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_change_of_one_per_cent_is_seen_in_every_number(name: str) -> None:
    """Every number with a fraction, in print and in prose, where the print shows the change."""
    cells = code_cells(jupytext.read(CHAPTERS[name]))
    parts = read(reference_path(CHAPTERS[name]).read_text("utf-8"))
    for cell, part in zip(cells, parts, strict=True):
        if TRAINED in cell.metadata.get("tags", []):
            continue
        for _, text in texts(part.outputs):
            for number in NUMBER.findall(text):
                mantissa, e, _ = number.partition("e")
                digits = len(mantissa.partition(".")[2])
                changed = (
                    f"{1.01 * float(number):{'+' if number[0] == '+' else ''}.{digits}{e or 'f'}}"
                )
                whole = number.lstrip("+-").isdigit()
                shown = float(changed) != float(number)
                assert whole or not shown or not same_number(number, changed), number
