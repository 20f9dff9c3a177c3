"""What a caption says, in its order: the paper's number as a badge, the finding, the provenance.

A figure that regenerates one of the paper's has two numbers, which a reader takes for one another.
The paper's becomes a badge of its own ("Paper, Figure 5"); where the caption's text begins with it,
it goes. What a caption says from "Data:" on is how to make the figure again; it folds.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PROVENANCE = "Data, encoder, seed and command"
_ANCHOR = re.compile(r"paper-(fig|table)-(\d+)")
_NUMBER = re.compile(r"\A(?:Figure|Table) \d+[.:,]\s*(\w)")
_DATA = re.compile(r"(?:\A|(?<=[.!?)] )|(?<=[.!?)]\n))Data:\s")


def paper_number(figure: nodes.Element) -> str:
    """``Figure 5`` for a figure with the anchor ``paper-fig-5``, else nothing."""
    for anchor in figure["ids"]:
        if found := _ANCHOR.fullmatch(anchor):
            return f"{'Figure' if found[1] == 'fig' else 'Table'} {found[2]}"
    return ""


def rewrite(figure: nodes.figure) -> None:
    """Badge and fold of one figure's caption."""
    caption = next(iter(figure.findall(nodes.caption)), None)
    if caption is None:
        return
    if number := paper_number(figure):
        first = caption.children[0]
        if isinstance(first, nodes.Text):
            plain = _NUMBER.sub(lambda found: found[1].upper(), first)
            caption.replace(first, nodes.Text(plain))
        badge = nodes.inline("", f"Paper, {number}", classes=["paper-number"])
        caption.insert(0, [badge, nodes.Text(" ")])
    provenance = _cut(caption)
    if provenance:
        paragraph = nodes.paragraph("", "", *provenance)
        opening = f'<details class="provenance"><summary>{PROVENANCE}</summary>'
        legend = next(iter(figure.findall(nodes.legend)), None)
        if legend is None:
            legend = nodes.legend()
            figure += legend
        legend += [
            nodes.raw("", opening, format="html"),
            paragraph,
            nodes.raw("", "</details>", format="html"),
        ]


def _cut(caption: nodes.caption) -> list[nodes.Node]:
    """Take the provenance, from "Data:" to the end, out of a caption that has more than it."""
    for place, child in enumerate(caption.children):
        if not isinstance(child, nodes.Text):
            continue
        found = _DATA.search(child)
        if found is None or (place == 0 and not child[: found.start()].strip()):
            continue
        rest = [nodes.Text(child[found.start() :]), *caption.children[place + 1 :]]
        del caption.children[place:]
        caption += nodes.Text(child[: found.start()].rstrip())
        return rest
    return []


def _rewrite_all(app: Sphinx, doctree: nodes.document) -> None:
    for figure in list(doctree.findall(nodes.figure)):
        rewrite(figure)


def setup(app: Sphinx) -> dict[str, Any]:
    """Run once a page is read."""
    app.connect("doctree-read", _rewrite_all)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
