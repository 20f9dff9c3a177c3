"""Reference notebooks: what each chapter printed when it was last accepted.

A chapter is committed without outputs. Beside it, under ``tests/notebooks``, stands a notebook with
the same cells and their text outputs, taken from the execution cache of the last build. nbval runs
these notebooks again and compares.
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import yaml
from jupyter_cache import get_cache
from nbformat import NotebookNode

from comparison import KINDS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent


def chapters() -> list[Path]:
    """The chapters that run: every file of the contents with a kernel in its front matter."""
    listed = sorted((ROOT / "book").rglob("*.md"))
    return [path for path in listed if _front_matter(path).get("kernelspec")]


def _front_matter(path: Path) -> dict[str, object]:
    text = path.read_text("utf-8")
    if not text.startswith("---\n"):
        return {}
    return yaml.safe_load(text[4:].split("\n---\n", 1)[0]) or {}


def reference_path(chapter: Path) -> Path:
    """Where the reference of a chapter stands."""
    return FOLDER / chapter.relative_to(ROOT / "book").with_suffix(".ipynb")


def executed(chapter: Path) -> NotebookNode:
    """The chapter with the outputs of the last build.

    Raises:
        KeyError: the last build did not run the chapter as it stands.
    """
    cache = get_cache(str(ROOT / "_build" / ".jupyter_cache"))
    source = jupytext.read(chapter)
    _, notebook = cache.merge_match_into_notebook(source)
    for cell, original in zip(notebook.cells, source.cells, strict=True):
        cell.metadata = original.metadata
    return notebook


def slim(notebook: NotebookNode) -> NotebookNode:
    """Only code cells, in order, and of their outputs only what is compared."""
    cells = []
    for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        tags = cell.metadata.get("tags", [])
        ignored = "nbval-ignore-output" in tags
        outputs = [] if ignored else _joined([o for o in map(_slim, cell.outputs) if o])
        cells.append(
            nbformat.v4.new_code_cell(
                cell.source,
                id=f"cell-{number}",
                metadata={"tags": tags} if tags else {},
                outputs=outputs,
                execution_count=cell.execution_count,
            )
        )
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": dict(notebook.metadata["kernelspec"])}
    )


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    # A kernel sends what a cell prints in one piece or in several, by chance.
    joined: list[NotebookNode] = []
    for output in outputs:
        same = joined and output.get("name") and output.get("name") == joined[-1].get("name")
        if same:
            joined[-1] = NotebookNode({**output, "text": joined[-1].text + output.text})
        else:
            joined.append(output)
    return joined


def _slim(output: NotebookNode) -> NotebookNode | None:
    if "data" not in output:
        return output
    kept = {kind: text for kind, text in output.data.items() if kind in KINDS}
    return NotebookNode({**output, "data": kept, "metadata": {}}) if kept else None
