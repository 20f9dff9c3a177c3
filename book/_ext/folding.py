"""Fold the code that a reader need not read, behind one line that says what it is.

What stands open on a page is the idea. Set-up, the making of figures and tables, long cells and
checks fold; a statement's verdict reads "holds. Checked: 6 of 6". A cell that has a tag of its own
for what it shows keeps it, and so do the cells of a solution, which is folded as a whole.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docutils import nodes

from influence_lab.theory.ledger import VERDICTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

LONG = 15
"""Lines that still stand open."""
_RECORD = re.compile(rf"[\w-]+: ({'|'.join(VERDICTS)})")
_SETUP = re.compile(r"\A(?:%.*\n|#.*\n|\s)*(?:import|from) ")
_DRAWS = re.compile(r"\bplt\.|\bfigures\.|\.draw\w*\(|\.figure\w*\(|contact_sheet")
_BOOLEANS = re.compile(r"(?:True|False|[\s\d{}()\[\],:.])*")


def fold(doctree: nodes.document) -> None:
    """Set how each cell of a page folds."""
    for cell in _cells(doctree):
        if chosen := folded(cell):
            cell["hide_mode"], line = chosen
            cell["prompt_show"] = cell["prompt_hide"] = line


def _cells(doctree: nodes.document) -> Iterator[nodes.container]:
    inside = False
    for node in doctree.findall(nodes.Element):
        gate = type(node).__name__
        if gate in ("solution_start_node", "solution_end_node"):
            inside = gate == "solution_start_node"
        elif (
            node.get("nb_element") == "cell_code"
            and not node.get("hide_mode")
            and not inside
            and not _in_solution(node)
        ):
            yield node


def _in_solution(node: nodes.Node | None) -> bool:
    while node is not None and type(node).__name__ != "solution_node":
        node = node.parent
    return node is not None


def folded(cell: nodes.container) -> tuple[str, str] | None:
    """What of a cell folds (``input``, ``all``) and the line that stands for it; or nothing."""
    parts = {part.get("nb_element"): part for part in cell.children}
    if "cell_code_source" not in parts:
        return None
    source = parts["cell_code_source"].astext().strip()
    output = parts.get("cell_code_output")
    shows = [] if output is None else list(output.findall(nodes.literal_block))
    pictures = output is not None and any(True for _ in output.findall(nodes.image))
    lines = source.count("\n") + 1

    for block in shows:
        if found := verdict(block.astext()):
            return ("input" if pictures else "all"), found
    if _SETUP.match(source):
        return "input", "Set-up"
    if pictures:
        return ("input", "Code of the figure") if _DRAWS.search(source) or lines > 3 else None
    if output is not None and any("<table" in raw.astext() for raw in output.findall(nodes.raw)):
        return "input", "Code of the table"
    if shows and all("True" in b.astext() and _BOOLEANS.fullmatch(b.astext()) for b in shows):
        return "all", "Checked by computer"
    if lines > LONG:
        return "input", f"Code, {lines} lines"
    return None


def verdict(text: str) -> str:
    """The line for verdicts as ``ledger.verdict`` prints them, each with a line for each check."""
    lines = text.rstrip().split("\n")
    heads = [line for line in lines if not line.startswith("  ")]
    found = [match for line in heads if (match := _RECORD.fullmatch(line))]
    checks = len(lines) - len(heads)
    if lines[0].startswith("  ") or len(found) < len(heads) or not checks:
        return ""
    opening = f"Verdict: {found[0][1]}" if len(found) == 1 else f"{len(found)} verdicts"
    return f"{opening}. Checked: {checks} of {checks}"


def _fold(app: Sphinx, doctree: nodes.document) -> None:
    fold(doctree)


def setup(app: Sphinx) -> dict[str, Any]:
    """Run once a page is read."""
    app.connect("doctree-read", _fold)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
