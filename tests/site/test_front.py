"""How to cite: what the first page offers is what CITATION.cff says."""

from __future__ import annotations

import re
import sys
import tomllib
from typing import Any

import pytest
import yaml
from bs4 import BeautifulSoup
from pybtex.database import parse_string

from pages import PAGES, ROOT, SITE

sys.path.insert(0, str(ROOT / "book" / "_ext"))
pytestmark = pytest.mark.usefixtures("built_site")
CFF = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
FIRST = SITE / "book" / "intro.html"


@pytest.fixture(scope="module")
def first() -> BeautifulSoup:
    return BeautifulSoup(FIRST.read_text("utf-8"), "html.parser")


def people(authors: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(author["given-names"], author["family-names"]) for author in authors]


def test_bibtex_is_the_citation_file(first: BeautifulSoup) -> None:
    (block,) = first.select("div.highlight-bibtex pre")
    paper, book = parse_string(block.get_text(), "bibtex").entries.values()
    wanted = CFF["preferred-citation"]
    assert paper.fields["title"].strip("{}") == wanted["title"]
    assert paper.fields["year"] == str(wanted["year"])
    assert wanted["identifiers"][0]["value"] in paper.fields["journal"]
    names = [
        (" ".join(p.first_names + p.middle_names), " ".join(p.last_names))
        for p in paper.persons["author"]
    ]
    assert names == people(wanted["authors"])
    assert book.fields["title"].strip("{}") == CFF["title"]
    assert book.fields["version"] == CFF["version"]


def test_the_version_is_the_package_s(first: BeautifulSoup) -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert package["version"] == CFF["version"]
    assert f"Version {package['version']}." in first.get_text()


def test_images_stand_between_the_recorded_scores(first: BeautifulSoup) -> None:
    # The file itself: where quantiles end, and how many images there are.
    import numpy as np

    with np.load(ROOT / "book/results/cpu/simclr-0/scores-train.npz") as file:
        quantiles, count = file["quantiles"], len(file["rank"])
    text = first.select_one("figure.front").get_text()
    for value in (quantiles[-1], quantiles[-2], count):
        assert f"{value:,.0f}" in text
    assert f"{quantiles[0]:.1f} to {quantiles[1]:.1f}" in text


@pytest.mark.parametrize("page", PAGES)
def test_head_says_what_the_page_is(page: str) -> None:
    text = (SITE / page).read_text("utf-8").partition("</head>")[0]
    head = BeautifulSoup(text, "html.parser").head
    title = re.split(" [—–] ", head.title.get_text())
    assert len(title) == len(set(title))
    named: dict[str, Any] = {
        m.get("property") or m.get("name"): m.get("content") for m in head("meta")
    }
    assert named["og:title"]
    assert len(named["description"]) > 20
    assert named["og:description"] == named["description"]
    assert ((SITE / page).parent / named["og:image"]).is_file()


def test_the_card_shows_the_recorded_images_and_scores() -> None:
    import numpy as np
    from PIL import Image

    import front

    tracked = np.asarray(Image.open(front.CARD), dtype=float)
    drawn = np.asarray(front.card(front.title(ROOT)), dtype=float)
    # Compression moves no region of 10 by 10 pixels by more than 9 on average; another digit, 119.
    blocks = np.abs(tracked - drawn)[:630, :1200].reshape(63, 10, 120, 10, 3).mean((1, 3, 4))
    assert blocks.max() < 40
