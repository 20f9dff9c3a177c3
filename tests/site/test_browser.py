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
        page.evaluate("() => document.fonts.ready")
        yield page
    finally:
        context.close()


def address(page: str) -> str:
    return (SITE / page).as_uri()


def violations(page: Any) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {n['html'][:160]}" for v in found for n in v["nodes"]]


WIDTHS = (360, 390, 768, 1440)
# For readers of the screen alone, and so one pixel large; and the parts of one large brace.
UNSEEN = "mjx-assistive-mml, mjx-math, .visually-hidden, .sr-only"


def overflow(page: Any) -> dict[str, Any]:
    """The page's width beyond the window's, what sticks out of it, and what a box cuts off."""
    return page.evaluate(
        """unseen => {
            const wide = document.scrollingElement.scrollWidth - window.innerWidth;
            const visible = e => e && getComputedStyle(e).overflowX === 'visible';
            const scrolls = e => e && (!visible(e) || scrolls(e.parentElement));
            const sticksOut = e => e.getBoundingClientRect().right > window.innerWidth + 1;
            const all = [...document.body.querySelectorAll('*')];
            const who = wide <= 0 ? [] : all.filter(e => sticksOut(e) && !scrolls(e.parentElement));
            const article = document.querySelector('article') ?? document.body;
            const cut = [...article.querySelectorAll('*')].filter(e =>
                e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && !visible(e)
                && !e.closest(unseen) && getComputedStyle(e).display !== 'inline');
            const names = found => found.slice(0, 3).map(e => e.outerHTML.slice(0, 120));
            return {wide: Math.max(wide, 0), who: names(who), cut: names(cut)};
        }""",
        UNSEEN,
    )


@pytest.mark.parametrize("page", PAGES)
def test_page_is_quiet_and_accessible(chromium: Any, page: str) -> None:
    with opened(chromium, address(page), viewport=DESKTOP) as view:
        assert view.complaints == []
        assert violations(view) == []


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_cut_or_scrolls_sideways(chromium: Any, page: str) -> None:
    with opened(chromium, address(page), viewport=DESKTOP) as view:
        found = {}
        for width in WIDTHS:
            view.set_viewport_size({"width": width, "height": 900})
            found[width] = overflow(view)
        assert found == {width: {"wide": 0, "who": [], "cut": []} for width in WIDTHS}


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
        "<div style='width: 900px'>wide</div><pre style='overflow: auto'><b "
        "style='display: inline-block; width: 990px'>cut</b></pre>"
        "<script>console.error('oh')</script></body></html>"
    )
    with opened(chromium, bad.as_uri(), viewport=PHONE) as view:
        complaints = "\n".join(view.complaints)
        assert "another host: https://example.org/x.png" in complaints
        assert "missing.png" in complaints
        assert "console error: oh" in complaints
        assert overflow(view)["wide"] > 0
        assert any("cut</b>" in one for one in overflow(view)["cut"])
        assert any(line.startswith("image-alt") for line in violations(view))
