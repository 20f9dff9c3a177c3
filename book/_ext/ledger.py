"""Sphinx extension: the statement ledger, from the records that the chapters left; counts.

`{statement-ledger}` becomes a table with one row a statement; `{statement-count}` a sentence
with the number of each verdict; `{claims-count}` the same of the paper's empirical claims, whose
verdicts follow from the recorded results. `{tallies}` shows both counts as badges that lead to the
two ledgers. The statements' records are glue data of
`influence_lab.theory.ledger.verdict`, so they are there after an execution and after a read from
the execution cache alike. A statement of the inventory without exactly one record, or a record
without its anchor in the same chapter, is a warning.
"""

import json
from collections import Counter
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from influence_lab.experiments import catalogue, claims
from influence_lab.theory.ledger import PAPER_PREFIX, RECORD_PREFIX, VERDICTS

logger = logging.getLogger(__name__)

HEADERS = ("Statement", "Verdict", "Condition or counterexample")
WIDTHS = (32, 18, 50)
PLURAL = dict(
    zip(
        VERDICTS,
        ("hold", "hold under a stated condition", "are false as stated", "are definitions"),
        strict=True,
    )
)


class ledger_placeholder(nodes.General, nodes.Element):
    """Stands for the table until every chapter has been read."""


class count_placeholder(nodes.General, nodes.Element):
    """Stands for the sentence with the numbers of verdicts."""


class tallies_placeholder(nodes.General, nodes.Element):
    """Stands for the two lines of badges."""


class StatementLedger(SphinxDirective):
    """`{statement-ledger}`: no argument, no content."""

    def run(self) -> list[nodes.Node]:
        return [ledger_placeholder()]


class StatementCount(SphinxDirective):
    """`{statement-count}`: no argument, no content."""

    def run(self) -> list[nodes.Node]:
        return [count_placeholder()]


class ClaimsCount(SphinxDirective):
    """`{claims-count}`: no argument, no content."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        return [nodes.paragraph("", claims_sentence(catalogue.rows()))]


class Tallies(SphinxDirective):
    """`{tallies}`: no argument, no content."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        return [tallies_placeholder()]


def claims_sentence(found: list[claims.Row]) -> str:
    """How many of the paper's empirical claims have each verdict."""
    counted = Counter(row.verdict for row in found)
    words = {
        claims.REPRODUCED: "are reproduced",
        claims.CONTRADICTED: "are contradicted, for these encoders or by published numbers",
        claims.INCONCLUSIVE: "are inconclusive",
        claims.NOT_TESTED: "are not tested here",
    }
    *most, last = (f"{counted[verdict]} {text}" for verdict, text in words.items())
    return f"Of the paper's {len(found)} empirical claims {', '.join(most)}, and {last}."


def records(env: BuildEnvironment) -> list[tuple[str, dict]]:
    """(chapter, record) of every verdict, in the order of the contents."""
    found = []
    for docname in _reading_order(env, env.config.root_doc):
        keys = getattr(env, "nb_metadata", {}).get(docname, {}).get("glue", [])
        if not any(key.startswith(RECORD_PREFIX) for key in keys):
            continue
        path = _glue_folder(env) / f"{docname}.glue.json"
        glued = json.loads(path.read_text(encoding="utf8"))
        found += [
            (docname, json.loads(glued[key]["data"]["text/plain"]))
            for key in keys
            if key.startswith(RECORD_PREFIX)
        ]
    return found


def _glue_folder(env: BuildEnvironment) -> Path:
    config = getattr(env, "mystnb_config")  # noqa: B009  myst_nb adds it to the environment
    return Path(config.output_folder)


def _reading_order(env: BuildEnvironment, docname: str) -> list[str]:
    parts = [_reading_order(env, child) for child in env.toctree_includes.get(docname, [])]
    return [docname, *(name for part in parts for name in part)]


def statements(env: BuildEnvironment) -> list[dict]:
    """The inventory's statements: id, paper, what."""
    path = Path(env.srcdir) / env.config.ledger_inventory
    return yaml.safe_load(path.read_text(encoding="utf8"))["statements"]


def rows(env: BuildEnvironment) -> list[dict]:
    """The paper's statements in the inventory's order, then those beyond it."""
    listed = {entry["id"]: entry for entry in statements(env)}
    order = list(listed)
    table = [
        record
        | {"docname": docname}
        | {
            "label": listed.get(record["statement"], {}).get("paper", "Beyond the paper"),
            "what": record["what"] or listed.get(record["statement"], {}).get("what", ""),
        }
        for docname, record in records(env)
    ]
    return sorted(
        table,
        key=lambda row: order.index(row["statement"]) if row["statement"] in listed else len(order),
    )


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of statements without a verdict and of verdicts without a statement."""
    counted = Counter(record["statement"] for _, record in records(env))
    listed = {entry["id"] for entry in statements(env)}
    for statement in sorted(listed | set(counted)):
        if counted[statement] != 1:
            logger.warning(f"ledger: {statement} has {counted[statement]} verdicts, not one")
        if statement.startswith(PAPER_PREFIX) and statement not in listed:
            logger.warning(f"ledger: {statement} is not in {app.config.ledger_inventory}")
    proofs = getattr(env, "proof_list", {})
    for docname, record in records(env):
        if proofs.get(record["statement"], {}).get("docname") != docname:
            logger.warning(
                f"ledger: {record['statement']} has a verdict but no anchor in {docname}"
            )


def pages_to_rewrite(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The pages that show the ledger: they change when any chapter does."""
    return sorted(getattr(env, "ledger_pages", set()) & set(env.found_docs))


def remember_page(app: Sphinx, doctree: nodes.document) -> None:
    """Note which pages show the ledger."""
    kinds = ledger_placeholder, count_placeholder, tallies_placeholder
    if any(isinstance(node, kinds) for node in doctree.findall(nodes.Element)):
        pages = getattr(app.env, "ledger_pages", set()) | {app.env.docname}
        setattr(app.env, "ledger_pages", pages)  # noqa: B010  Sphinx keeps it with the environment


def resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put table and sentence where their placeholders stand."""
    for placeholder in list(doctree.findall(ledger_placeholder)):
        placeholder.replace_self(_table(app, docname))
    for placeholder in list(doctree.findall(count_placeholder)):
        placeholder.replace_self(nodes.paragraph("", _count_sentence(app.env)))
    for placeholder in list(doctree.findall(tallies_placeholder)):
        placeholder.replace_self(_tallies(app, docname))


def _count_sentence(env: BuildEnvironment) -> str:
    table = rows(env)
    paper = [row for row in table if row["statement"].startswith(PAPER_PREFIX)]
    counted = Counter(row["verdict"] for row in paper)
    parts = ", ".join(f"{counted[verdict]} {PLURAL[verdict]}" for verdict in VERDICTS)
    return (
        f"Of the paper's {len(paper)} statements {parts}. "
        f"{len(table) - len(paper)} statements go beyond the paper."
    )


# A badge's colour, by the verdict's rank: good, bad, undecided, no verdict.
COLOURS = {
    "holds": "reproduced",
    "holds under a stated condition": "inconclusive",
    "false as stated": "contradicted",
    "definition": "not-tested-here",
}
SHORT = {"holds under a stated condition": "hold under a condition", "holds": "hold"} | {
    "false as stated": "false as stated",
    "definition": "definitions",
}


def _tallies(app: Sphinx, docname: str) -> nodes.bullet_list:
    paper = [row for row in rows(app.env) if row["statement"].startswith(PAPER_PREFIX)]
    proved = Counter(row["verdict"] for row in paper)
    measured = catalogue.rows()
    judged = Counter(row.verdict for row in measured)
    lines = (
        (
            f"{len(paper)} mathematical statements",
            "book/theory/ledger",
            [(f"{proved[v]} {SHORT[v]}", COLOURS[v]) for v in VERDICTS],
        ),
        (
            f"{len(measured)} empirical claims",
            "book/experiments/claims",
            [(f"{judged[v]} {v}", v.replace(" ", "-")) for v in claims.VERDICTS],
        ),
    )
    tallies = nodes.bullet_list(classes=["tallies"])
    for title, document, badges in lines:
        uri = app.builder.get_relative_uri(docname, document)
        link = nodes.reference("", "", nodes.strong("", title), refuri=uri, internal=True)
        for text, colour in badges:
            link += [nodes.Text(" "), nodes.inline("", text, classes=["verdict", colour])]
        tallies += nodes.list_item("", nodes.paragraph("", "", link))
    return tallies


def _table(app: Sphinx, docname: str) -> nodes.table:
    group = nodes.tgroup(cols=len(HEADERS))
    group += [nodes.colspec(colwidth=width) for width in WIDTHS]
    head, body = nodes.thead(), nodes.tbody()
    head += _row([[nodes.paragraph("", text)] for text in HEADERS])
    for row in rows(app.env):
        uri = app.builder.get_relative_uri(docname, row["docname"]) + "#" + row["statement"]
        link = nodes.reference("", row["label"], refuri=uri, internal=True)
        name = nodes.paragraph("", "", link, nodes.Text(" "), nodes.literal("", row["statement"]))
        count = len(row["checks"])
        checks = f"{count} check{'s' if count > 1 else ''}"
        verdict = row["verdict"]
        badge = nodes.inline("", verdict, classes=["verdict", COLOURS[verdict]])
        body += _row(
            [
                [name, _prose(row["what"])],
                [nodes.paragraph("", "", badge), _prose(checks)],
                [_prose(text) for text in (row["condition"], row["counterexample"]) if text],
            ]
        )
    group += [head, body]
    table = nodes.table("", group, classes=["statement-ledger", "colwidths-given"])
    return table


def _row(cells: list[list[nodes.Node]]) -> nodes.row:
    row = nodes.row()
    for content in cells:
        row += nodes.entry("", *content)
    return row


def _prose(text: str) -> nodes.paragraph:
    """A paragraph in which what stands between dollar signs is mathematics."""
    paragraph = nodes.paragraph()
    for position, part in enumerate(text.split("$")):
        if part:
            paragraph += nodes.math(part, part) if position % 2 else nodes.Text(part)
    return paragraph


def setup(app: Sphinx) -> dict:
    """Register directives and events."""
    app.add_config_value("ledger_inventory", "book/inventory.yml", "env")
    app.add_node(ledger_placeholder)
    app.add_node(count_placeholder)
    app.add_node(tallies_placeholder)
    app.add_directive("statement-ledger", StatementLedger)
    app.add_directive("statement-count", StatementCount)
    app.add_directive("claims-count", ClaimsCount)
    app.add_directive("tallies", Tallies)
    app.connect("doctree-read", remember_page)
    app.connect("env-updated", pages_to_rewrite)
    app.connect("env-check-consistency", check)
    app.connect("doctree-resolved", resolve)
    return {"version": "1", "env_version": 1, "parallel_read_safe": False}
