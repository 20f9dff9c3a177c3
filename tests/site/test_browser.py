"""Every page in a headless Chromium, opened from disk as a reader would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe

from pages import PAGES, SITE, one_of_each_kind

pytestmark = pytest.mark.usefixtures("built_site")
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
KINDS = one_of_each_kind()


@contextmanager
def opened(browser: Any, address: str, scheme: str = "light", **options: Any) -> Iterator[Any]:
    """A loaded page, and in ``page.complaints`` what it asked of other hosts or reported."""
    context = browser.new_context(color_scheme=scheme, **options)
    page = context.new_page()
    page.complaints = complaints = []

    def on_request(request: Any) -> None:
        if urlsplit(request.url).scheme not in ("file", "data", "blob"):
            complaints.append(f"request to another host: {request.url}")

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"console {message.type}: {message.text}")

    page.on("request", on_request)
    page.on("requestfailed", lambda r: complaints.append(f"failed: {r.url} {r.failure}"))
    page.on("console", on_console)
    page.on("pageerror", lambda e: complaints.append(f"script error: {e}"))
    try:
        page.goto(address, wait_until="load")
        # Typesetting goes on after the load event and can still fail or widen the page.
        page.evaluate("() => window.MathJax?.startup?.promise")
        page.wait_for_timeout(100)
        yield page
    finally:
        context.close()


def address(page: str) -> str:
    return (SITE / page).as_uri()


def violations(page: Any) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {n['html'][:160]}" for v in found for n in v["nodes"]]


def overflow(page: Any) -> dict[str, Any]:
    """The page's width beyond the window's, and who causes it."""
    return page.evaluate(
        """() => {
            const wide = document.scrollingElement.scrollWidth - window.innerWidth;
            const scrolls = e =>
                e && (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement));
            const sticksOut = e => e.getBoundingClientRect().right > window.innerWidth + 1;
            const who = wide <= 0 ? [] : [...document.body.querySelectorAll('*')].filter(
                e => sticksOut(e) && !scrolls(e.parentElement));
            return {wide, who: who.slice(0, 3).map(e => e.outerHTML.slice(0, 120))};
        }"""
    )


@pytest.mark.parametrize("page", PAGES)
def test_page_is_quiet_and_accessible(chromium: Any, page: str) -> None:
    with opened(chromium, address(page), viewport=DESKTOP) as view:
        assert view.complaints == []
        assert violations(view) == []


@pytest.mark.parametrize("page", PAGES)
def test_phone_never_scrolls_sideways(chromium: Any, page: str) -> None:
    with opened(chromium, address(page), viewport=PHONE, is_mobile=True) as view:
        assert view.complaints == []
        assert overflow(view) == {"wide": 0, "who": []}


@pytest.mark.parametrize("page", KINDS)
def test_dark_theme_is_accessible(chromium: Any, page: str) -> None:
    with opened(chromium, address(page), scheme="dark", viewport=DESKTOP) as view:
        assert view.evaluate("document.documentElement.dataset.theme") == "dark"
        assert violations(view) == []


@pytest.mark.parametrize("page", KINDS)
def test_phone_is_accessible(chromium: Any, page: str) -> None:
    with opened(chromium, address(page), viewport=PHONE, is_mobile=True) as view:
        assert violations(view) == []


def test_front_door_leads_to_the_introduction(chromium: Any) -> None:
    view = chromium.new_page()
    view.goto(address("index.html"))
    view.wait_for_url("**/book/intro.html")
    view.close()


def test_search_works_from_disk(chromium: Any) -> None:
    with opened(chromium, address("search.html") + "?q=influence") as view:
        view.wait_for_selector("#search-results li a")
        assert view.complaints == []


def test_the_checks_see_what_they_are_for(chromium: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<html><body><img src='https://example.org/x.png'><img src='missing.png'>"
        "<div style='width: 900px'>wide</div><script>console.error('oh')</script></body></html>"
    )
    with opened(chromium, bad.as_uri(), viewport=PHONE) as view:
        complaints = "\n".join(view.complaints)
        assert "another host: https://example.org/x.png" in complaints
        assert "missing.png" in complaints
        assert "console error: oh" in complaints
        assert overflow(view)["wide"] > 0
        assert any(line.startswith("image-alt") for line in violations(view))
