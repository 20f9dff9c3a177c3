"""Every page in a headless Chromium, opened from disk as a reader would."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe

from pages import HOMES, PAGES, SITE, one_of_each_kind

pytestmark = pytest.mark.usefixtures("built_site")
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
KINDS = one_of_each_kind()


@contextmanager
def window(browser: Any, scheme: str = "light", **options: Any) -> Iterator[Any]:
    """An empty page, and in ``page.complaints`` what it asks of other hosts or reports.

    A window costs a process, and so serves for several pages where they may share one.
    """
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
        yield page
    finally:
        context.close()


def load(page: Any, address: str) -> None:
    """Open an address in a window, and wait until all of it is there."""
    if page.url != "about:blank":
        # What the page before still loads fails here, and is not the next one's.
        page.goto("about:blank")
        page.complaints.clear()
    page.goto(address, wait_until="load")
    page.evaluate("() => document.fonts.ready")


@contextmanager
def opened(browser: Any, address: str, scheme: str = "light", **options: Any) -> Iterator[Any]:
    """A loaded page in a window of its own."""
    with window(browser, scheme, **options) as page:
        load(page, address)
        yield page


def address(page: str) -> str:
    return (SITE / page).as_uri()


# Contrast takes axe most of its time, and text with the same tags, classes and colours up to the
# root has the same one: the first two of each kind are marked. Of formulas the glyphs, which have
# no text and are nothing to axe, give way to boxes of their size.
THIN = """() => {
    const kinds = new Map(), kind = new WeakMap(), seen = new Map();
    const number = name => kinds.get(name) ?? kinds.set(name, kinds.size).size;
    for (const e of document.querySelectorAll('*')) {
        if (e.closest('mjx-math')) continue;
        const s = getComputedStyle(e);
        const box = e.getBoundingClientRect();
        kind.set(e, number([
            kind.get(e.parentElement), e.tagName, e.getAttribute('class'), s.color, s.opacity,
            s.backgroundColor, s.backgroundImage, s.fontSize, s.fontWeight, s.textShadow,
            s.position, s.display, s.visibility, s.overflow, s.clip, s.clipPath,
            e.matches(':disabled, [aria-disabled=true]') || e.control?.disabled,
            box.width > 1, box.height > 1, box.right > 0, box.bottom > 0, e.checkVisibility(),
        ].join('|')));
        const own = [...e.childNodes].filter(node => node.nodeType === Node.TEXT_NODE);
        const text = own.map(node => node.data.trim()).join('');
        if (!text && !e.matches('input, select, textarea')) continue;
        // axe does not judge a single sign, or a text without letters.
        const what = [kind.get(e), text.length > 1, /[\\p{L}\\p{N}]/u.test(text)].join('|');
        seen.set(what, (seen.get(what) ?? 0) + 1);
        e.toggleAttribute('data-judged', seen.get(what) <= 2);
    }
    const glyphs = [...document.querySelectorAll('mjx-math')].filter(e => !e.textContent);
    const boxes = glyphs.map(e => e.getBoundingClientRect());
    window.thinned = glyphs.map((e, i) => {
        const before = [e, e.getAttribute('style') ?? '', [...e.childNodes]];
        e.replaceChildren();
        e.style.cssText += `; width: ${boxes[i].width}px; height: ${boxes[i].height}px`;
        return before;
    });
}"""
THICKEN = """() => {
    for (const [e, style, children] of window.thinned) {
        e.setAttribute('style', style);
        e.replaceChildren(...children);
    }
}"""
MARKED = "[{id: 'color-contrast', selector: '[data-judged]'}]"
AXE = Axe(f"{Axe().axe_script}; axe.configure({{rules: {MARKED}}})")
# What is in order is not described: that takes axe as long as to find what is not.
FAULTS = {"resultTypes": ["violations"]}


def violations(page: Any) -> list[str]:
    page.evaluate(THIN)
    found = AXE.run(page, options=FAULTS).response["violations"]
    page.evaluate(THICKEN)
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


def torn(page: Any) -> list[str]:
    """Words of tables of which a part stands in the next line; long names may be."""
    return page.evaluate(
        """() => {
            const found = [], range = document.createRange();
            const cells = 'table:is(.phone-fits, .phone-cards) :is(td, th)';
            for (const cell of document.querySelectorAll(cells)) {
                const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
                while (texts.nextNode()) {
                    const text = texts.currentNode;
                    if (text.parentElement.closest('code, mjx-container')) continue;
                    for (const word of text.data.matchAll(/[^\\s\\-–/]+/g)) {
                        if (word[0].length > 20) continue;
                        range.setStart(text, word.index);
                        range.setEnd(text, word.index + word[0].length);
                        const lines = new Set([...range.getClientRects()].map(r => r.top));
                        if (lines.size > 1) found.push(word[0]);
                    }
                }
            }
            return found;
        }"""
    )


@pytest.fixture(scope="module")
def desktop(chromium: Any) -> Iterator[Any]:
    with window(chromium, viewport=DESKTOP) as view:
        yield view


@pytest.fixture(scope="module", params=PAGES)
def visited(request: pytest.FixtureRequest, desktop: Any) -> Any:
    """A page in a wide window, loaded once for both of its tests."""
    desktop.set_viewport_size(DESKTOP)
    load(desktop, address(request.param))
    return desktop


def test_page_is_quiet_and_accessible(visited: Any) -> None:
    assert visited.complaints == []
    assert violations(visited) == []


def test_nothing_is_cut_or_scrolls_sideways(visited: Any) -> None:
    found = {}
    for width in WIDTHS:
        visited.set_viewport_size({"width": width, "height": 900})
        # In a window that is wider, a table of nine columns may tear a word.
        found[width] = overflow(visited) | {"torn": torn(visited) if width < 768 else []}
    assert found == {width: {"wide": 0, "who": [], "cut": [], "torn": []} for width in WIDTHS}


def test_all_questions_are_on_one_screen_and_no_command_is_torn(desktop: Any) -> None:
    load(desktop, address("book/practice/which-number.html"))
    sizes = (DESKTOP, True), ({"width": 768, "height": 900}, False), (PHONE, False)
    for size, one in sizes:
        desktop.set_viewport_size(size)
        bottom, torn = desktop.evaluate(
            """() => {
                const table = document.querySelector('table.which-number');
                const codes = [...table.querySelectorAll('td:not(:nth-child(3)) code')];
                return [table.getBoundingClientRect().bottom,
                        codes.filter(c => c.getClientRects().length > 1).length];
            }"""
        )
        assert torn == 0, size
        assert bottom <= size["height"] or not one


@pytest.fixture(scope="module")
def dark(chromium: Any) -> Iterator[Any]:
    with window(chromium, "dark", viewport=DESKTOP) as view:
        yield view


@pytest.mark.parametrize("page", KINDS)
def test_dark_theme_is_accessible(dark: Any, page: str) -> None:
    load(dark, address(page))
    assert dark.evaluate("document.documentElement.dataset.theme") == "dark"
    assert violations(dark) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_known_before_the_theme_s_script(chromium: Any, scheme: str) -> None:
    """Settled later, all of a page is styled a second time."""
    with window(chromium, scheme) as page:
        page.route("**/pydata-sphinx-theme.js*", lambda route: route.abort())
        load(page, address("book/practice/which-number.html"))
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        page.evaluate("localStorage.setItem('mode', 'dark')")
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_formulas_are_heard_as_mathematics_and_laid_out_as_text(chromium: Any) -> None:
    with opened(chromium, address("book/theory/notation.html")) as page:
        session = page.context.new_cdp_session(page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        roles = {node["role"]["value"] for node in nodes if not node["ignored"]}
        assert {"MathMLMath", "MathMLFraction", "MathMLSub", "MathMLIdentifier"} <= roles
        shown = page.locator("mjx-assistive-mml mfrac").first
        assert shown.evaluate("e => getComputedStyle(e).display") == "block"


@pytest.fixture(scope="module")
def phone(chromium: Any) -> Iterator[Any]:
    with window(chromium, viewport=PHONE, is_mobile=True) as view:
        yield view


# Those with a picture that answers are tested on a phone with it, in both themes.
@pytest.mark.parametrize("page", [page for page in KINDS if page not in HOMES.values()])
def test_phone_is_accessible(phone: Any, page: str) -> None:
    load(phone, address(page))
    assert violations(phone) == []


@pytest.mark.parametrize("width", [390, 1440])
def test_a_link_into_a_long_page_leads_to_its_place(chromium: Any, width: int) -> None:
    """Nothing above it may change its height once it is there."""
    target = "#exercises"
    size = {"width": width, "height": 900}
    with opened(
        chromium, address("book/experiments/memorisation.html") + target, viewport=size
    ) as page:
        page.wait_for_function(
            """target => {
                const top = document.querySelector(target).getBoundingClientRect().top;
                return 0 <= top && top <= 200;
            }""",
            arg=target,
            timeout=10_000,
        )


def test_the_contents_mark_what_is_read(chromium: Any) -> None:
    target = "#exercises"
    with opened(
        chromium, address("book/experiments/memorisation.html") + target, viewport=DESKTOP
    ) as page:
        page.wait_for_selector(f".bd-toc-nav a.active[href='{target}']")
        assert page.locator(".bd-toc-nav a.active").count() == 1


def test_on_the_way_up_a_button_leads_to_the_top(chromium: Any) -> None:
    """In a wide window the theme has none."""
    size = {"width": 1000, "height": 900}
    with opened(chromium, address("book/theory/notation.html"), viewport=size) as page:
        button = page.locator("#pst-back-to-top")
        page.evaluate("scrollTo(0, 2000)")
        page.wait_for_function("scrollY === 2000")
        assert not button.is_visible()
        page.evaluate("scrollBy(0, -300)")
        button.click()
        page.wait_for_function("scrollY === 0")


def test_what_scrolls_is_reached_by_the_keyboard(chromium: Any) -> None:
    with opened(chromium, address("book/quickstart.html"), viewport=DESKTOP) as page:
        assert page.locator("pre[tabindex]").count() == 0
        page.add_style_tag(content="pre { width: 3rem; white-space: pre !important }")
        page.set_viewport_size(PHONE)
        page.wait_for_selector("pre[tabindex='0']", state="attached")


def test_what_is_folded_is_measured_when_it_opens(chromium: Any) -> None:
    """Measured earlier, each box is laid out apart, which takes most of a page's start."""
    with opened(chromium, address("book/theory/properties.html"), viewport=PHONE) as page:
        folded = "details:not([open]) pre"
        page.add_style_tag(content="pre { width: 3rem; white-space: pre !important }")
        page.set_viewport_size({"width": 400, "height": 844})
        page.wait_for_selector("pre[tabindex='0']", state="attached")
        assert page.locator(folded).count() > 0
        assert page.locator(f"{folded}[tabindex]").count() == 0
        page.evaluate("document.querySelector('details:has(pre)').open = true")
        page.wait_for_selector("details[open] pre[tabindex='0']", state="attached")


def test_front_door_leads_to_the_introduction(chromium: Any) -> None:
    view = chromium.new_page()
    view.goto(address("index.html"))
    view.wait_for_url("**/book/intro.html")
    view.close()


def test_search_works_from_disk(chromium: Any) -> None:
    with opened(chromium, address("search.html") + "?q=influence") as view:
        view.wait_for_selector("#search-results li a")
        assert view.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_row_under_the_pointer_can_be_read(chromium: Any, scheme: str) -> None:
    with opened(chromium, address("book/theory/ledger.html"), scheme, viewport=DESKTOP) as view:
        row = view.locator("table.statement-ledger tbody tr").nth(3)
        colour = "e => getComputedStyle(e).backgroundColor"
        before = row.evaluate(colour)
        row.hover()
        assert row.evaluate(colour) != before
        assert violations(view) == []


def test_the_checks_see_what_they_are_for(chromium: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<html><body><img src='https://example.org/x.png'><img src='missing.png'>"
        "<div style='width: 900px'>wide</div><pre style='overflow: auto'><b "
        "style='display: inline-block; width: 990px'>cut</b></pre>"
        # Text of little contrast after as many of its kind as are judged, by whatever makes it so.
        "<style>i { color: #ccc } .dark p { background: #444 } p.shown { color: #222 }</style>"
        "<p class='shown' hidden>first</p><p class='shown'>second</p><p class='shown'>third</p>"
        "<p class='shown' id='inline' style='color: #ccc'>fourth</p><i id='token'>pale</i>"
        "<div class='dark'><p class='shown' id='dark'>fifth</p></div>"
        "<mjx-math aria-hidden='true' style='x: y'><mjx-c class='a'></mjx-c></mjx-math>"
        "<script>console.error('oh')</script></body></html>"
    )
    with opened(chromium, bad.as_uri(), viewport=PHONE) as view:
        complaints = "\n".join(view.complaints)
        assert "another host: https://example.org/x.png" in complaints
        assert "missing.png" in complaints
        assert "console error: oh" in complaints
        assert overflow(view)["wide"] > 0
        assert any("cut</b>" in one for one in overflow(view)["cut"])
        before = view.locator("mjx-math").evaluate("e => e.outerHTML")
        found = violations(view)
        assert any(line.startswith("image-alt") for line in found)
        pale = {line for line in found if line.startswith("color-contrast")}
        assert {re.search("id=.(\\w+)", line)[1] for line in pale} == {"inline", "token", "dark"}
        assert view.locator("mjx-math").evaluate("e => e.outerHTML") == before
