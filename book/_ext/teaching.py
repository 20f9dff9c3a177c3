r"""Routes through the book and its exercises as notebooks, both made from the chapters' sources.

``{route}`` lists chapters with the minutes that each states (``**Time**: about 35 minutes``) and
their sum; a name that ends in ``/`` stands for every chapter of that folder.
``{exercise-list}`` lists every chapter that has exercises, with a link to its notebook. The
notebooks are the chapters without their solutions, written to ``exercises/`` beside the pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jupytext
import nbformat
from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

_TIME = re.compile(r"\*\*Time:?\*\*:?\s*(?:about )?(\d+) minutes")
_EXERCISE = re.compile(r"^[`:]{3,}\{exercise\} *(.*)$", re.M)
_SOLUTION = re.compile(
    r"^[`:]{3,}\{solution-start\}.*?^[`:]{3,}\{solution-end\}\s*^[`:]{3,}$", re.M | re.S
)
_ROLE = re.compile(r"\{([a-z:]+)\}`([^`]+)`")
_FOLDER = "exercises"


def without_solutions(source: str) -> nbformat.NotebookNode:
    """A chapter's notebook with an empty cell where each solution stood, readable in Jupyter."""
    empty = "```{code-cell} ipython3\n# Your solution\n```"
    notebook = jupytext.reads(_SOLUTION.sub(empty, source), fmt="md:myst")
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type == "markdown":
            cell.source = _plain(cell.source)
    return notebook


def _plain(text: str) -> str:
    """MyST's directives and roles as ordinary Markdown."""
    text = re.sub(r"^[`:]{3,}\{(\w+)\} *(.*)$", r"**\1: \2**\n", text, flags=re.M)
    text = re.sub(r"^(?:[`:]{3,}|:(?:label|class|name):.*)$", "", text, flags=re.M)
    text = re.sub(r"^\$\$ \([\w-]+\)$", "$$", text, flags=re.M)
    return _ROLE.sub(r"`\2`", text).strip()


def _source(env: BuildEnvironment, document: str) -> str:
    env.note_dependency(f"{document}.md")
    path = Path(env.srcdir) / f"{document}.md"
    return path.read_text("utf-8") if path.exists() else ""


def _contents(env: BuildEnvironment) -> list[str]:
    """Every document in the order of the table of contents."""
    site_map = getattr(env, "external_site_map")  # noqa: B009, set by sphinx_external_toc

    def below(document: str) -> list[str]:
        children = site_map[document].child_files()
        return [document, *(name for child in children for name in below(child))]

    return below(site_map.root.docname)


def _link(document: str) -> nodes.Node:
    target = addnodes.pending_xref(
        "", refdomain="std", reftype="doc", reftarget=f"/{document}", refexplicit=False,
        refwarn=True,
    )  # fmt: skip
    target += nodes.inline()
    return target


class Route(SphinxDirective):
    """A list of chapters with the minutes they state, and the sum."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """One list item a chapter; the total as a last line."""
        contents, total = _contents(self.env), 0
        items = nodes.bullet_list()
        for name in (line.strip() for line in self.content):
            for document in contents:
                match = document == name or (name.endswith("/") and document.startswith(name))
                found = _TIME.search(_source(self.env, document)) if match else None
                if found is None:
                    continue
                total += int(found[1])
                text = nodes.Text(f", {found[1]} minutes")
                items += nodes.list_item("", nodes.paragraph("", "", _link(document), text))
        if not len(items):
            return [nodes.paragraph("", "These chapters are not in the book yet.")]
        return [items, nodes.paragraph("", f"Together {total} minutes.")]


class ExerciseList(SphinxDirective):
    """Every chapter with exercises: their titles and the notebook."""

    def run(self) -> list[nodes.Node]:
        """One list item a chapter."""
        items = nodes.bullet_list()
        up = "../" * self.env.docname.count("/")
        for document in _contents(self.env):
            titles = _EXERCISE.findall(_source(self.env, document))
            if titles:
                name = document.removeprefix("book/").replace("/", "-")
                notebook = nodes.reference("", "notebook", refuri=f"{up}{_FOLDER}/{name}.ipynb")
                text = "exercise" if len(titles) == 1 else "exercises"
                parts = _link(document), nodes.Text(f", {len(titles)} {text}: "), notebook
                items += nodes.list_item("", nodes.paragraph("", "", *parts))
        return [items]


def _write(app: Sphinx, failure: Exception | None) -> None:
    if failure is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir) / _FOLDER
    folder.mkdir(exist_ok=True)
    for document in _contents(app.env):
        path = Path(app.srcdir) / f"{document}.md"
        source = path.read_text("utf-8") if path.exists() else ""
        if _EXERCISE.search(source):
            name = document.removeprefix("book/").replace("/", "-")
            text = nbformat.writes(without_solutions(source))
            (folder / f"{name}.ipynb").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the two directives, and write the notebooks once the pages stand."""
    app.add_directive("route", Route)
    app.add_directive("exercise-list", ExerciseList)
    app.connect("build-finished", _write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
