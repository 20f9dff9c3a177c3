"""The directive ``command-help``: what ``--help`` prints, taken from the parser at build time.

``{command-help} influence_ssl.command.main`` calls that module's ``parser()``: a section for its
help and one for each subcommand, in their order.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def helps(module: str) -> dict[str, str]:
    """The help of ``module``'s command and of its subcommands, by the words that ask for it."""
    parser: argparse.ArgumentParser = import_module(module).parser()
    found = {parser.prog: parser.format_help()}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {f"{parser.prog} {n}": p.format_help() for n, p in action.choices.items()}
    return found


class CommandHelp(SphinxDirective):
    """``{command-help} MODULE``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One section for each help."""
        sections: list[nodes.Node] = []
        for command, text in helps(self.arguments[0]).items():
            section = nodes.section(ids=[nodes.make_id(command)], names=[command])
            section += nodes.title("", "", nodes.literal("", command))
            section += nodes.literal_block(text, text, language="text")
            self.state.document.note_explicit_target(section)
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive; the cache's fingerprint has the code that the help comes from."""
    app.add_directive("command-help", CommandHelp)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
