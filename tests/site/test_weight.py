"""What a page weighs: itself and every file that it loads, as a reader's browser does from disk."""

from __future__ import annotations

import re
from statistics import mean

import pytest

from pages import PAGES, SITE, soup

pytestmark = pytest.mark.usefixtures("built_site")
LOADED = re.compile(
    r'<script[^>]* src="([^"?]+)|<link rel="stylesheet"[^>]* href="([^"?]+)'
    r'|<link href="([^"?]+)[^>]*rel="stylesheet"|<img [^>]*src="([^":?]+)"'
)


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The files that each page asks for."""
    found = {page: LOADED.findall((SITE / page).read_text("utf-8")) for page in PAGES}
    return {
        page: {name for match in all_ for name in match if name} for page, all_ in found.items()
    }


def test_a_page_weighs_less_than_a_megabyte(loaded: dict[str, set[str]]) -> None:
    files = {
        page: {SITE / page, *(((SITE / page).parent / name).resolve() for name in names)}
        for page, names in loaded.items()
    }
    weights = {page: sum(f.stat().st_size for f in found) for page, found in files.items()}
    heaviest = sorted(weights.items(), key=lambda one: -one[1])[:5]
    assert mean(weights.values()) < 0.6e6, heaviest
    assert heaviest[0][1] < 1e6, heaviest


def test_pictures_load_when_they_come_near_and_keep_their_place() -> None:
    for page in PAGES:
        for image in soup(page).select("article a.enlarge img"):
            assert image["loading"] == "lazy", page
            assert int(image["width"]) > 0, page
            assert int(image["height"]) > 0, page


def test_no_page_leaves_formulas_and_icons_to_scripts(loaded: dict[str, set[str]]) -> None:
    assert not [n for names in loaded.values() for n in names if re.search("mathjax|fontaw", n)]
    for page in PAGES:
        html = re.sub(
            r"<script.*?</script>|<pre.*?</pre>", "", (SITE / page).read_text("utf-8"), flags=re.S
        )
        assert "\\(" not in html, page
