"""What a newcomer looks for, and the two clicks at most that lead there from the first page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from test_browser import DESKTOP, address, load, window

pytestmark = pytest.mark.usefixtures("built_site")
FIRST = "book/intro.html"
# Names of links, in order, or a word for the search and one of its first three hits; then where the
# reader is, and a text that answers the question there.
LINKS = {
    "score my images": (["Score my images"], "practice/score-your-own", "influence-ssl score"),
    "Figure 6": (["Which claims hold?", "Figure 6"], "experiments/removal", "random"),
    "false statements": (["mathematical statements"], "theory/ledger", "false as stated"),
    "how to cite": (["How to cite"], "intro.html#how-to-cite", "@article"),
    "trace a query": (["Which training images are behind it?"], "practice/trace", "query"),
    "what the score predicts": (
        ["What predicts memorisation?"],
        "experiments/memorisation",
        "predictor",
    ),
    "exercises on leverage": (["Leverage", "Exercises"], "theory/leverage.html#exercises", "Exer"),
}
SEARCHES = {
    "how to cite": ("cite", "intro.html"),
    "the default rank": ("default rank", "practice/settings"),
    "what damping does": ("damping", "glossary.html#term-damping"),
    "run it on a GPU": ("GPU", "practice/many-gpus"),
}


@pytest.fixture(scope="module")
def view(chromium: Any) -> Iterator[Any]:
    with window(chromium, viewport=DESKTOP) as view:
        yield view


@pytest.mark.parametrize("task", LINKS)
def test_by_links(view: Any, task: str) -> None:
    names, goal, answer = LINKS[task]
    assert len(names) <= 2
    load(view, address(FIRST))
    for name in names:
        row = view.locator("tr", has=view.get_by_role("cell", name=name, exact=True))
        link = row.get_by_role("link") if row.count() else view.get_by_role("link", name=name)
        # A card's link has no text of its own size to click on; its whole card follows it.
        link.first.press("Enter", timeout=5000)
        view.wait_for_load_state()
    assert goal in view.url
    assert answer in view.locator("article").inner_text()


def test_by_search(view: Any) -> None:
    missed = {}
    for task, (words, goal) in SEARCHES.items():
        view.goto(address("search.html") + "?q=" + words)
        view.wait_for_selector("#search-results li a")
        view.wait_for_function("document.querySelector('#search-results p')?.innerText")
        hits = view.locator("#search-results li > a").evaluate_all(
            "links => links.slice(0, 3).map(a => a.href)"
        )
        if not any(goal in hit for hit in hits):
            missed[task] = hits
    assert missed == {}
