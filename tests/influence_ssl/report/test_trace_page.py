"""The page of a trace in a headless Chromium, opened from disk as a reader would."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report_page import opened

from influence_ssl.analysis.trace import LISTS, Entry, Found, Trace
from influence_ssl.files.images import ImageFiles
from influence_ssl.report.trace import _everywhere, page

N, TOP = 300, 6
LONG = "with-a-long-name-that-has-to-break-somewhere-0123456789"
QUERIES = ("one.png", f'a <b>& "two"/{LONG}.png', "3.png")


def pictures(folder: Path, names: list[str], rng: np.random.Generator) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def made_of(rng: np.random.Generator, n: int = N) -> Trace:
    """Image 3 is the first query itself; image 9 helps every query most."""
    names = [f"{'ab'[i % 2]}/{i:05}.png" for i in range(n)]
    found = []
    for q, query in enumerate(QUERIES):
        order = [9, *(i for i in rng.permutation(n).tolist() if i != 9)]
        lists = {}
        for k, which in enumerate(LISTS):
            places = order[:TOP] if k == 0 else rng.permutation(n).tolist()[:TOP]
            sign = 1 if which == "hurts" else -1
            lists[which] = [
                Entry(i, sign * (50.0 - j), 0.9 - j / 10, 0.5 - j / 10, (q, i) == (0, 3))
                for j, i in enumerate(places)
            ]
        found.append(Found(query, lists, [3] if q == 0 else [], 0.25))
    lists = found[0].lists
    lists["pixels"] = [Entry(3, -1.0, 1.0, 1.0, True), *lists["pixels"][1:]]
    found[2].lists["hurts"].clear()
    known = {"draws": 2, "normalise": None, "untrained": True, "queries": {"skipped": [["x", "y"]]}}
    return Trace(found, TOP, names, np.arange(n), known)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trace]:
    folder, rng = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    found = made_of(rng)
    pictures(folder / "images", list(found.names), rng)
    pictures(folder / "queries", list(QUERIES), rng)
    known = ImageFiles(folder / "images").readable()
    digests = dict(zip(known.names, known.pixels, strict=True))
    text = page(found, folder / "queries", folder / "images", digests)
    (folder / "trace.html").write_text(text, encoding="utf-8")
    return folder / "trace.html", found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_page_is_quiet_accessible_and_fits(
    chromium: Any, made: tuple[Path, Trace], scheme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    size = {"width": width, "height": 850}
    shown = opened(chromium, made[0], color_scheme=scheme, viewport=size, is_mobile=width < 500)
    found = Axe().run(shown).response["violations"]
    assert [(v["id"], n["html"][:120]) for v in found for n in v["nodes"]] == []
    assert shown.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
    assert shown.complaints == []
    shown.context.close()


@pytest.mark.parametrize("width", [390, 320])
def test_the_overview_fits_a_phone(chromium: Any, made: tuple[Path, Trace], width: int) -> None:
    """Below its name, each query's numbers have their titles; nothing scrolls sideways."""
    path, found = made
    shown = opened(chromium, path, viewport={"width": width, "height": 850}, is_mobile=True)
    table = shown.locator("#overview .scroll")
    assert table.evaluate("e => e.scrollWidth - e.clientWidth") <= 0
    shared = [[one.shared(rival) for rival in LISTS[2:]] for one in found.found]
    titles = table.locator("thead th").all_text_contents()[1:]
    for row, one, (near, pixels) in zip(
        table.locator("tbody tr").all(), found.found, shared, strict=True
    ):
        numbers = [len(one.lists["helps"]), near, pixels, f"{one.reliability:.2f}"]
        drawn = row.locator("td").evaluate_all(
            "all => all.map(e => [getComputedStyle(e, '::before').content, e.textContent])"
        )
        expected = zip(titles, numbers, strict=True)
        assert drawn == [[f'"{title} "', str(number)] for title, number in expected]
        name, *cells = (cell.bounding_box() for cell in row.locator("th, td").all())
        assert all(cell["y"] >= name["y"] + name["height"] - 1 for cell in cells)
    # Assistive technology still reads a table with the columns' titles.
    tree = shown.locator("#overview").aria_snapshot()
    assert "- table" in tree
    assert 'columnheader "reliability"' in tree
    shown.context.close()


def test_every_list_stands_under_its_title_in_its_order(
    chromium: Any, made: tuple[Path, Trace]
) -> None:
    path, found = made
    shown = opened(chromium, path)
    articles = shown.locator("article.query")
    assert articles.locator("h3").all_inner_texts() == list(QUERIES)
    for one, article in zip(found.found, articles.all(), strict=True):
        for which in LISTS:
            expected = [found.names[e.position] for e in one.lists[which]]
            place = article.locator(f"h4[id$='-{which}'] + ul .name")
            assert place.all_inner_texts() == expected
    assert "No image hurts this query." in articles.nth(2).inner_text()
    (itself,) = shown.locator(".same .name").all_inner_texts()
    assert itself == found.names[3]
    for words in ("The encoder is untrained.", "expected to have a correlation of 0.25"):
        assert words in shown.locator("main").inner_text()
    everywhere = f"{found.names[9]} is among the images that help most for 3 of 3 queries"
    assert everywhere in shown.locator("main").inner_text()
    # The second query's first helper, and what the overview counts.
    row = shown.locator("#overview tbody tr").nth(1).locator("td").all_inner_texts()
    assert row[1] == str(found.found[1].shared("representation"))
    assert shown.evaluate("[...document.images].every(i => i.src.startsWith('data:'))")
    shown.context.close()


def test_the_keyboard_reaches_the_queries(chromium: Any, made: tuple[Path, Trace]) -> None:
    shown = opened(chromium, made[0])
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "Skip to the content"
    seen = []
    for _ in range(12):
        shown.keyboard.press("Tab")
        seen.append(shown.evaluate("document.activeElement.textContent"))
    assert set(QUERIES) <= set(seen)
    shown.get_by_role("link", name=QUERIES[2]).press("Enter")
    assert shown.evaluate("location.hash") == "#query-3"
    assert shown.locator("#query-3 h3").is_visible()
    shown.context.close()


def test_print_shows_all_pictures(chromium: Any, made: tuple[Path, Trace], tmp_path: Path) -> None:
    shown = opened(chromium, made[0])
    shown.emulate_media(media="print")
    assert not shown.locator("nav").is_visible()
    # Chromium loads what was not yet in view before it prints.
    assert len(shown.pdf()) > 30_000
    assert shown.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
    shown.context.close()


def test_an_image_heads_many_lists_only_beyond_chance() -> None:
    """3 of 3 lists of 6 of 40 images happen by chance, in every seventh page; of 300 hardly."""
    few, many = (made_of(np.random.default_rng(0), n) for n in (40, 300))
    assert _everywhere(few) is None
    assert _everywhere(many) == {"name": many.names[9], "count": 3}
