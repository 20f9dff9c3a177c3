"""The pages that the contents promise, read from ``_toc.yml`` and not from what was built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"


def _files(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("root", "file"):
                yield value
            else:
                yield from _files(value)
    elif isinstance(node, list):
        for value in node:
            yield from _files(value)


DOCUMENTS = list(_files(yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))))
PAGES = [*(f"{document}.html" for document in DOCUMENTS), "search.html"]
# The pages with a picture that answers, by its name.
HOMES = {
    "drag": "book/foundations/one-example.html",
    "damping": "book/theory/leverage.html",
    "trace": "book/method/where.html",
    "explorer": "book/experiments/loss.html",
}


def one_of_each_kind() -> list[str]:
    """The first page of every folder, and those outside the parts: the layouts that differ."""
    seen: dict[str, str] = {}
    for page in PAGES:
        folder = str(Path(page).parent)
        seen.setdefault(page if folder in (".", "book") else folder, page)
    return list(seen.values())


FORMULA = re.compile(r"<mjx-container.*?</mjx-container>", re.S)


@cache
def soup(page: str) -> BeautifulSoup:
    """The page without what is typeset of its formulas: a third of it, and half of its elements."""
    return BeautifulSoup(FORMULA.sub("", (SITE / page).read_text("utf-8")), "html.parser")
