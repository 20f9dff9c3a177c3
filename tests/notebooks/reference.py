"""References: what each chapter printed when it was last accepted.

A chapter is committed without outputs. Its reference under ``tests/notebooks`` is a text file with
one part for each code cell: ``>>>`` and the first line of its code, then what is compared of its
outputs (:func:`comparison.texts`). nbval runs the chapter beside these outputs.

    >>> print(scores.values.round(6))
    stdout: [-0.000677 -0.000545 -0.000937]
    >>> glue("total", float(scores.values.sum()), display=False)
    glued total: -0.002159941397406506
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import jupytext
import nbformat
import yaml
from jupyter_cache import get_cache
from nbformat import NotebookNode
from nbval.plugin import coalesce_streams

from comparison import KINDS, texts

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
CELL = ">>> "
GLUED = "glued "
GLUED_KIND = KINDS[-1]
INDENT = "    "


@dataclass(frozen=True)
class Part:
    """One cell of a reference: the first line of its code, and its outputs."""

    head: str
    outputs: list[NotebookNode] = field(default_factory=list)


def chapters() -> list[Path]:
    """The chapters that run: every file of the contents with a kernel in its front matter."""
    listed = sorted((ROOT / "book").rglob("*.md"))
    return [path for path in listed if runs(path)]


def runs(path: Path) -> bool:
    """Whether a page's front matter names a kernel."""
    text = path.read_text("utf-8")
    if not text.startswith("---\n"):
        return False
    return bool((yaml.safe_load(text[4:].split("\n---\n", 1)[0]) or {}).get("kernelspec"))


def reference_path(chapter: Path) -> Path:
    """Where the reference of a chapter stands."""
    return FOLDER / chapter.relative_to(ROOT / "book").with_suffix(".txt")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that run, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def head(cell: NotebookNode) -> str:
    """The line by which a reference names a cell."""
    return cell.source.lstrip().split("\n", 1)[0].rstrip()


def executed(chapter: Path) -> NotebookNode:
    """The chapter with the outputs of its last run.

    Raises:
        KeyError: the chapter was not run as it stands.
    """
    cache = get_cache(str(ROOT / "_build" / ".jupyter_cache"))
    source = jupytext.read(chapter)
    _, notebook = cache.merge_match_into_notebook(source)
    for cell, original in zip(notebook.cells, source.cells, strict=True):
        cell.metadata = original.metadata
    return notebook


def write(notebook: NotebookNode) -> str:
    """The reference of a chapter that has been run, as text."""
    lines = []
    for cell in code_cells(notebook):
        lines.append(CELL + head(cell))
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            continue
        for output in coalesce_streams(deepcopy(cell.outputs)):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            for kind, text in texts([output]):
                label = GLUED + name if kind == GLUED_KIND else kind
                first, *more = text.rstrip("\n").split("\n")
                if more:
                    lines.append(f"{label}:")
                    lines += [(INDENT + line).rstrip() for line in (first, *more)]
                else:
                    lines.append(f"{label}: {first}".rstrip())
    return "\n".join(lines) + "\n"


def read(text: str) -> list[Part]:
    """The parts of a reference, in the order of the chapter's cells.

    Raises:
        ValueError: a line that belongs to no output, with its number.
    """
    parts: list[Part] = []
    found: list[tuple[str, list[str]]] = []  # of the last part: labels, and lines of text

    def close() -> None:
        if parts:
            parts[-1].outputs.extend(_output(label, "\n".join(lines)) for label, lines in found)
        found.clear()

    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        label, colon, first = line.partition(": ")
        if line.startswith(CELL.rstrip()):
            close()
            parts.append(Part(line.removeprefix(CELL.rstrip()).strip()))
        elif found and (not line or line.startswith(INDENT)):
            found[-1][1].append(line.removeprefix(INDENT))
        elif parts and ":" in line and not line.startswith(" "):
            found.append((label, [first]) if colon else (label.removesuffix(":"), []))
        else:
            raise ValueError(f"line {number} belongs to no output: {line!r}")
    close()
    return parts


def _output(label: str, text: str) -> NotebookNode:
    new = nbformat.v4.new_output
    if label.startswith(GLUED):
        name = {"scrapbook": {"name": label.removeprefix(GLUED)}}
        return new("display_data", data={GLUED_KIND: text}, metadata=name)
    if label in KINDS:
        return new("display_data", data={label: text})
    if label in ("stdout", "stderr"):
        return new("stream", name=label, text=text)
    return new(label, ename=text)
