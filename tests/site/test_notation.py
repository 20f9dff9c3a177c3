"""One symbol per object: the list of symbols, the chapters' own letters, and their formulas."""

from __future__ import annotations

import sys

import pytest

from pages import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))

from notation import clashes, letters, own_symbols, shared_symbols, undeclared

THEORY = sorted(
    path
    for path in (ROOT / "book" / "theory").glob("*.md")
    if path.stem not in ("notation", "ledger")
)


def test_no_symbol_of_the_list_stands_for_two_objects() -> None:
    assert clashes(shared_symbols(ROOT)) == []


@pytest.mark.parametrize("path", THEORY, ids=lambda path: path.stem)
def test_a_chapter_uses_and_declares_each_letter_once(path) -> None:
    source, shared = path.read_text("utf-8"), shared_symbols(ROOT)
    assert clashes([*shared, *own_symbols(source)]) == []
    assert undeclared(source, shared) == []


def test_a_planted_clash_and_a_letter_without_a_meaning_are_found() -> None:
    shared = [("$n$", "number of examples"), ("$g$, $g_i$", "gradient")]
    block = "```{symbols}\n$r$: $a^Tb$, where $a$ is a vector\n$g_j$: a group\n$a$: a vector\n```\n"
    cell = "```{code-cell}\nx = '$z$'\n```\n"
    source = f"{block}{cell}Let $r_i=\\sum_j g_j+b$ and\n$$\nn\\,\\hat c\n$$\n"
    assert clashes([*shared, *own_symbols(source)]) == [
        "g: 'gradient' and 'a group'",
    ]
    assert undeclared(source, shared) == ["b", "c"]


def test_letters_leave_indices_functions_and_words_out() -> None:
    assert letters(r"\sum_{i=1}^n\cos(x_i)+\sigma_{max}\operatorname{tr}\mathbf I") == {
        "n", "x", "sigma_max", "bfI",
    }  # fmt: skip
