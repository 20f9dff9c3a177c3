r"""Routes through the book and its exercises as notebooks, both made from the chapters' sources.

``{route}`` lists chapters with the minutes that each states (``**Time**: about 35 minutes``) and
their sum; a name that ends in ``/`` stands for every chapter of that folder. With
``:minutes: 120-150`` the build fails where the sum lies outside of that range.
``{exercise-list}`` lists every chapter that has exercises, with a link to its notebook. The
notebooks are the chapters without their solutions, written to ``exercises/`` beside the pages.
References and glued numbers stand in them as the page shows them.
"""

from __future__ import annotations

import json
import re
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jupytext
import nbformat
from docutils import nodes
from docutils.parsers.rst import directives
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
_MINUTES = re.compile(r"(\d+)-(\d+)")
_ROLE = re.compile(r"\{([a-z:]+)\}`([^`]+)`")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_TITLED = re.compile(r"(.+?) *<[^<>]+>")
_NUMBERED = re.compile(r"^( *)\$\$ \(([\w-]+)\)$", re.M)
_DIRECTIVE = re.compile(r"^[`:]{3,}\{(?:\w+:)?([\w-]+)\} *(.*)\n((?:^:[\w-]+:.*\n)*)", re.M)
_FENCE = re.compile(r"^[`:]{3,}$", re.M)
_FOLDER = "exercises"

# What a role and its content read as on the page.
Reader = Callable[[str, str], str]


def without_solutions(source: str, read: Reader) -> nbformat.NotebookNode:
    """A chapter's notebook with an empty cell where each solution stood, readable in Jupyter."""
    empty = "```{code-cell} ipython3\n# Your solution\n```"
    notebook = jupytext.reads(_SOLUTION.sub(empty, source), fmt="md:myst")
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type == "markdown":
            cell.source = _plain(cell.source, read)
    return notebook


def _plain(text: str, read: Reader) -> str:
    """MyST's directives, roles and links between chapters as ordinary Markdown."""

    def link(found: re.Match[str]) -> str:
        words, target = found.groups()
        if "://" in target:
            return found[0]
        return words or read("doc", target.partition("#")[0].removesuffix(".md"))

    def heading(found: re.Match[str]) -> str:
        kind, title, options = found.groups()
        label = re.search(r"^:label: *(\S+)", options, re.M)
        if kind == "exercise" and label:
            kind = read("ref", label[1])
        words = [word for word in (kind.capitalize(), title) if word]
        if kind == "admonition":
            words = [title]
        return f"**{': '.join(words)}**\n"

    text = _DIRECTIVE.sub(heading, text)
    text = _NUMBERED.sub(lambda m: f"{m[1]}\\tag{{{read('eq', m[2]).strip('()')}}}\n{m[1]}$$", text)
    text = _LINK.sub(link, _FENCE.sub("", text))
    return _ROLE.sub(lambda m: read(m[1], m[2]), text).strip()


def _reader(app: Sphinx, document: str) -> Reader:
    """References of a document, resolved as Sphinx resolves them on its page; glued values."""
    folder = Path(app.outdir).parent / "jupyter_execute"
    path = folder / f"{document}.glue.json"
    glued = json.loads(path.read_text("utf-8")) if path.exists() else {}
    page = app.env.get_doctree(document)

    def glue(content: str) -> str:
        name, _, form = content.partition(":")
        data = glued[name]["data"]
        text = next(value for kind, value in data.items() if kind.endswith("text/plain"))
        return format(literal_eval(text), form)

    def read(role: str, content: str) -> str:
        if role == "glue:text":
            return glue(content)
        if titled := _TITLED.fullmatch(content):
            return titled[1]
        domain, kind = {"eq": ("math", "eq"), "cite": ("cite", "p")}.get(
            role, ("cite", role.partition(":")[2]) if role.startswith("cite:") else ("std", role)
        )
        target = content if kind == "doc" or domain == "cite" else content.lower()
        inner = nodes.inline("", content, classes=["xref", f"{domain}-{kind}"])
        reference = addnodes.pending_xref(
            "", inner, refdomain=domain, reftype=kind, reftarget=target, refexplicit=False,
            refwarn=True, refdoc=document,
        )  # fmt: skip
        page.children = [nodes.paragraph("", "", reference)]
        app.env.resolve_references(page, document, app.builder)
        text = page.astext()
        return f"*{text}*" if kind == "doc" else text

    return read


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
    option_spec: ClassVar = {"minutes": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """One list item per chapter; the total as a last line."""
        contents, total = _contents(self.env), 0
        items = nodes.bullet_list()
        for name in (line.strip() for line in self.content):
            if not any(document.startswith(name) for document in contents):
                raise self.error(f"{name!r} is no chapter and no folder of the table of contents.")
            for document in contents:
                match = document == name or (name.endswith("/") and document.startswith(name))
                found = _TIME.search(_source(self.env, document)) if match else None
                if found is None:
                    continue
                total += int(found[1])
                text = nodes.Text(f", {found[1]} minutes")
                items += nodes.list_item("", nodes.paragraph("", "", _link(document), text))
        if "minutes" in self.options:
            allowed = _MINUTES.fullmatch(self.options["minutes"])
            if allowed is None:
                raise self.error(f":minutes: {self.options['minutes']!r} is not like '120-150'.")
            if not int(allowed[1]) <= total <= int(allowed[2]):
                raise self.error(
                    f"this route takes {total} minutes, not {allowed[0]}; move a chapter to "
                    "another route, or change :minutes: and what the text says."
                )
        return [items, nodes.paragraph("", f"Together {total} minutes.")]


class ExerciseList(SphinxDirective):
    """Every chapter with exercises: their titles and the notebook."""

    def run(self) -> list[nodes.Node]:
        """One list item per chapter."""
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
            text = nbformat.writes(without_solutions(source, _reader(app, document)))
            (folder / f"{name}.ipynb").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the two directives, and write the notebooks once the pages stand."""
    app.add_directive("route", Route)
    app.add_directive("exercise-list", ExerciseList)
    app.connect("build-finished", _write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
