"""The built site against the inventory, its contents and its own links."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import Tag

from pages import DOCUMENTS, FORMULA, PAGES, ROOT, SITE, soup

pytestmark = pytest.mark.usefixtures("built_site")
INVENTORY = yaml.safe_load((ROOT / "book" / "inventory.yml").read_text("utf-8"))
DISPLAYS = [item["id"] for item in INVENTORY["displays"]]
STATEMENTS = [item["id"] for item in INVENTORY["statements"]]
INDEX = "book/reference/displays.html"


def test_formulas_hold_neither_ids_nor_links_nor_files() -> None:
    formulas = [
        formula for page in PAGES for formula in FORMULA.findall((SITE / page).read_text("utf-8"))
    ]
    assert len(formulas) > 1000
    assert not [f for f in formulas if re.search(r"\s(?:id|href|src|data)=|<(?:a|img)\b", f)]


@cache
def ids(page: str) -> Counter[str]:
    return Counter(str(element["id"]) for element in soup(page).find_all(id=True))


def rows(page: str) -> dict[str, Tag]:
    """The index's rows by the anchor they stand for, in the order of the inventory."""
    found = [row for table in soup(page).select("table.paper-index tbody") for row in table("tr")]
    names = DISPLAYS + STATEMENTS
    assert len(found) == len(names)
    return dict(zip(names, found, strict=True))


def test_inventory_is_whole() -> None:
    assert (len(DISPLAYS), len(STATEMENTS)) == (20, 21)


def test_every_promised_page_is_built() -> None:
    # The theme leaves templates of its own under _static.
    found = {str(path.relative_to(SITE)) for path in SITE.rglob("*.html")}
    built = {page for page in found if not page.startswith("_static/")}
    assert {f"{document}.html" for document in DOCUMENTS} <= built
    assert built <= {*PAGES, "index.html"}, "a page that is not in the contents"


@pytest.mark.parametrize("name", DISPLAYS + STATEMENTS)
def test_anchor_stands_once_or_is_reported_absent(name: str) -> None:
    places = [page for page in PAGES for _ in range(ids(page)[name])]
    row = rows(INDEX)[name]
    if not places:
        assert "not in the book yet" in row.text
        return
    assert len(places) == 1, f"{name} stands in {places}"
    element = soup(places[0]).find(id=name)
    assert isinstance(element, Tag)
    classes = element.get("class") or []
    if name in DISPLAYS:
        assert element.name in ("figure", "table") or "cell" in classes, element.name
        assert element.find(["img", "svg", "table", "td"]), f"{name} shows nothing"
    else:
        assert "proof" in classes, f"{name} is not a statement's box: {element.name} {classes}"
    link = row.find("a")
    assert isinstance(link, Tag)
    assert str(link["href"]).endswith(f"#{name}")


@pytest.mark.parametrize("page", PAGES)
def test_ids_are_unique(page: str) -> None:
    assert [name for name, count in ids(page).items() if count > 1] == []


@pytest.mark.parametrize("page", [*PAGES, "index.html"])
def test_links_and_files_resolve(page: str) -> None:
    broken = []
    for element in soup(page).find_all(["a", "link", "script", "img", "source", "object"]):
        for attribute in ("href", "src", "data"):
            target = element.get(attribute)
            if isinstance(target, str) and (why := _broken(page, target)):
                broken.append(f"{target}: {why}")
    assert broken == []


def _broken(page: str, target: str) -> str | None:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        # A link to another site is a reader's choice; test_browser sees what loads by itself.
        return None
    path = (SITE / page).parent / unquote(parts.path) if parts.path else SITE / page
    path = Path(path).resolve()
    if not path.is_relative_to(SITE):
        return "leaves the site"
    if not path.is_file():
        return "no such file"
    if parts.fragment and path.suffix == ".html":
        inside = str(path.relative_to(SITE))
        if not ids(inside)[unquote(parts.fragment)]:
            return "no such anchor"
    return None


def test_a_broken_link_is_found() -> None:
    assert _broken("book/intro.html", "nowhere.html") == "no such file"
    assert _broken("book/intro.html", "#nowhere") == "no such anchor"
    assert _broken("book/intro.html", "../../secret") == "leaves the site"
    assert _broken("book/intro.html", "../search.html") is None


@pytest.mark.parametrize("page", PAGES)
def test_images_have_alternative_text(page: str) -> None:
    # axe asks only that the attribute is there; a figure of the book needs words.
    content = soup(page).find("article") or soup(page)
    assert isinstance(content, Tag)
    assert [str(image.get("src")) for image in content("img") if not image.get("alt")] == []
