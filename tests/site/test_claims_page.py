"""The claims ledger in a headless Chromium: its buttons, its cards, its colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from influence_lab.experiments import catalogue, claims, claims_table
from pages import ROOT
from test_browser import DESKTOP, PHONE, opened, violations

SHOWN = "() => [...document.querySelectorAll('tr.claim')].filter(e => e.offsetParent).length"


@pytest.fixture(scope="module")
def rows() -> list[claims.Row]:
    return catalogue.rows()


@pytest.fixture
def page(rows: list[claims.Row], tmp_path: Path) -> str:
    """The table and the book's style sheet, without the theme."""
    style = (ROOT / "book" / "_static" / "book.css").read_text("utf-8")
    path = tmp_path / "claims.html"
    path.write_text(
        "<!doctype html><html lang=en data-theme=light><head><meta charset=utf-8><title>Claims"
        "</title><meta name=viewport content='width=device-width'>"
        f"<style>{style}</style></head><body><main><h1>Claims</h1>"
        f"{claims_table.table(rows, '')}</main></body></html>",
        "utf-8",
    )
    return path.as_uri()


def test_a_button_shows_one_verdict_alone(chromium: Any, page: str, rows: list[claims.Row]) -> None:
    with opened(chromium, page, viewport=DESKTOP) as view:
        assert view.evaluate(SHOWN) == len(rows)
        for verdict in claims.VERDICTS:
            view.check(f"input[value={verdict.replace(' ', '-')}]")
            assert view.evaluate(SHOWN) == sum(row.verdict == verdict for row in rows)
        view.check("input[value=all]")
        assert view.evaluate(SHOWN) == len(rows)
        assert violations(view) == []


def test_a_row_is_a_card_on_a_phone(chromium: Any, page: str) -> None:
    sides = (
        "() => [...document.querySelector('tr.claim').cells].map(e => e.getBoundingClientRect().x)"
    )
    with opened(chromium, page, viewport=PHONE, is_mobile=True) as view:
        assert len(set(view.evaluate(sides))) == 1
        assert view.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]
    with opened(chromium, page, viewport=DESKTOP) as view:
        assert len(set(view.evaluate(sides))) == 3
