"""The directive ``paper-index``: where each display and statement of the paper stands in the book.

Rows come from ``book/inventory.yml``, links from the anchors that the chapters really define,
commands from the figures' captions, and a display's status from the data of the claims about it. A
row without an anchor says "not in the book yet".
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from influence_lab.experiments import catalogue, claims

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

ABSENT = "not in the book yet"
_COMMANDS = ("influence-lab ", "influence-ssl ", "make ")


class _IndexNode(nodes.General, nodes.Element):
    """Stands for the table until every chapter has been read."""


class PaperIndex(SphinxDirective):
    """``{paper-index} displays`` or ``{paper-index} statements``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder: the anchors of later chapters are not known yet."""
        kind = self.arguments[0]
        if kind not in ("displays", "statements"):
            raise self.error(f"paper-index takes 'displays' or 'statements', not {kind!r}")
        self.env.note_dependency(str(Path(self.env.srcdir) / "book" / "inventory.yml"))
        return [_IndexNode("", kind=kind)]


def anchors(env: BuildEnvironment) -> dict[str, tuple[str, str]]:
    """Map each of the paper's anchors in the book to (document, command in its caption)."""
    found: dict[str, tuple[str, str]] = {}
    for document in sorted(env.found_docs):
        for element in env.get_doctree(document).findall(nodes.Element):
            for anchor in element.get("ids", []):
                if anchor.startswith("paper-"):
                    found[anchor] = (document, _command(element))
    return found


def _command(element: nodes.Element) -> str:
    for text in (*element.findall(nodes.caption), *element.findall(nodes.legend)):
        for literal in text.findall(nodes.literal):
            if literal.astext().startswith(_COMMANDS):
                return literal.astext()
    return ""


def _cell(*content: nodes.Node) -> nodes.entry:
    return nodes.entry("", nodes.paragraph("", "", *content))


def _table(headings: list[str], rows: list[nodes.row]) -> nodes.table:
    group = nodes.tgroup("", cols=len(headings))
    group.extend(nodes.colspec("", colwidth=1) for _ in headings)
    head = nodes.row("", *(_cell(nodes.Text(text)) for text in headings))
    group += nodes.thead("", head)
    group += nodes.tbody("", *rows)
    return nodes.table("", group, classes=["paper-index"])


def _fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    places = list(doctree.findall(_IndexNode))
    if not places:
        return
    inventory = yaml.safe_load((Path(app.srcdir) / "book" / "inventory.yml").read_text("utf-8"))
    found = anchors(app.env)
    for place in places:
        kind = place["kind"]
        headings = ["In the paper", "What", "In this book"]
        if kind == "displays":
            headings += ["Its claims rest on", "Command of the figure"]
            rated = catalogue.rows()
        rows = []
        for item in inventory[kind]:
            document, command = found.get(item["id"], ("", ""))
            if document:
                title = app.env.titles[document].astext()
                uri = app.builder.get_relative_uri(docname, document) + "#" + item["id"]
                where: nodes.Node = nodes.reference("", title, internal=True, refuri=uri)
            else:
                where = nodes.emphasis("", ABSENT)
            cells = [
                _cell(nodes.Text(item["paper"])),
                _cell(nodes.Text(item["what"])),
                _cell(where),
            ]
            if kind == "displays":
                cells.append(_cell(nodes.Text(claims.status(item["id"], rated))))
                cells.append(_cell(nodes.literal("", command)) if command else _cell())
            rows.append(nodes.row("", *cells))
        place.replace_self(_table(headings, rows))


def _rewrite(app: Sphinx, env: BuildEnvironment) -> list[str]:
    return [
        document
        for document in sorted(env.found_docs)
        if any(True for _ in env.get_doctree(document).findall(_IndexNode))
    ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive; pages that use it are written again in every build."""
    app.add_node(_IndexNode)
    app.add_directive("paper-index", PaperIndex)
    app.connect("doctree-resolved", _fill)
    app.connect("env-updated", _rewrite)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
