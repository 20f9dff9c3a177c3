"""How a phone shows a table: its words stay whole, and where they do not fit, each row is a card.

Whether the words fit is estimated from their letters. What a card needs is written into the page:
every cell says which column it is from, and a row header that spans several rows stands in each.
Tables with a style of their own are cards in any case; their cells say it too.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, NamedTuple

from bs4 import BeautifulSoup

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bs4.element import Tag

FITS, CARDS, WIDE, AGAIN = "phone-fits", "phone-cards", "wide-fits", "phone-again"


class Screen(NamedTuple):
    """In pixels: the text column, a bold letter of a table, and the margins of its cells."""

    column: int
    letter: int
    margins: int

    def holds(self, words: Iterable[int]) -> bool:
        """Whether the longest words of all columns stand beside each other."""
        return sum(self.letter * word + self.margins for word in words) <= self.column


# A small phone, and a small window. Letters as wide as DejaVu Sans, where a reader has no narrower.
PHONE, WINDOW = Screen(328, 8, 9), Screen(690, 10, 26)
_TABLE = re.compile(r'<table class="(dataframe|table)">.*?</table>', re.S)
_STYLED = re.compile(
    r'<table class="(?:paper-index|statement-ledger|which-number) table">.*?</table>', re.S
)
_BREAK = re.compile(r"[\s\-/–]+")


def fit_tables(html: str) -> str:
    """The page with a class on each plain table that says how a phone shows it."""
    return _STYLED.sub(_name, _TABLE.sub(_fit, html))


def _name(match: re.Match[str]) -> str:
    table = BeautifulSoup(match[0], "html.parser")
    labels = [_text(head) for head in table.select("thead th")]
    for row in table.select("tbody tr"):
        for label, cell in zip(labels[1:], row.select("td")[1:], strict=True):
            cell["data-label"] = label
    return str(table)


def _fit(match: re.Match[str]) -> str:
    html, kind = match[0], match[1]
    table = BeautifulSoup(html, "html.parser")
    spans = table.select("[colspan]:not([colspan='1'])")
    if spans or table.select("thead mjx-container") or not table.select("thead th"):
        return html
    rows = grid(table)
    columns = list(zip(*rows, strict=True))
    words = [max(len(w) for cell in one for w in _BREAK.split(_text(cell))) for one in columns]
    if PHONE.holds(words):
        # How wide a formula is, its letters do not say.
        known = not table.select("mjx-container")
        return html.replace(f'class="{kind}"', f'class="{kind} {FITS}"', 1) if known else html
    head = len(table.select("thead tr"))
    labels = [" ".join(filter(None, map(_text, one[:head]))) for one in columns]
    for row, element in zip(rows[head:], table.select("tbody tr"), strict=True):
        for i, cell in enumerate(row):
            own = cell
            if cell.parent is not element:
                own = copy.copy(cell)
                own["class"] = AGAIN
                del own["rowspan"]
                element.insert(i, own)
            if i and labels[i]:
                own["data-label"] = labels[i]
    assert table.table is not None
    table.table["class"] = f"{kind} {CARDS} {WIDE}" if WINDOW.holds(words) else f"{kind} {CARDS}"
    return str(table)


def grid(table: Tag) -> list[list[Tag]]:
    """The cells of every row, with those that span it from above."""
    rows: list[list[Tag]] = []
    spanning: dict[int, tuple[int, Tag]] = {}
    for element in table.select("tr"):
        own = element.find_all(["td", "th"], recursive=False)
        row: list[Tag] = []
        while own or len(row) in spanning:
            if len(row) in spanning:
                left, cell = spanning.pop(len(row))
            else:
                cell = own.pop(0)
                left = int(str(cell.get("rowspan", "1")))
            if left > 1:
                spanning[len(row)] = left - 1, cell
            row.append(cell)
        rows.append(row)
    return rows


def _text(cell: Tag) -> str:
    """What is read; a formula is as wide as a short word."""
    shown = copy.copy(cell)
    for formula in shown.select("mjx-container"):
        formula.replace_with("formula")
    return re.sub(r"\s+", " ", shown.get_text(" ")).strip()
