"""nbval runs the chapters as they stand; the pages show the outputs of that run.

``--nbval`` compares each cell's outputs with the chapter's reference under ``tests/notebooks``, and
``--nbval-lax`` runs a chapter without comparing. Either way the outputs of a chapter that ran to
its end go into the execution cache, from which the book is built.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unittest import mock

import jupytext
import nbformat
import pytest
from filelock import FileLock
from nbval import plugin

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "notebooks"))

import freshcache
import preloaded
from comparison import TRAINED, difference
from reference import FOLDER, ROOT, Part, code_cells, head, read, reference_path, runs

if "PYTEST_XDIST_WORKER" in os.environ:
    preloaded.install()
OUTPUTS = ("display_data", "error", "execute_result", "stream")


class Cell(plugin.IPyNbCell):
    """One code cell of a chapter, compared by :mod:`comparison`."""

    part: Part | None = None
    """The cell's part of the reference."""
    beyond: Part | None = None
    """In the chapter's last cell, a part of the reference that comes after it."""

    def compare_outputs(self, test: Any, ref: Any, skip_compare: Any = None) -> bool:
        """Whether the cell is the reference's, and gave what the reference has."""
        place = reference_path(self.parent.path).relative_to(ROOT)
        if self.part is None or self.part.head != head(self.cell):
            other = "nothing" if self.part is None else repr(self.part.head)
            where = f"{place} has {other} in the place of this cell: run make notebooks"
        elif self.beyond is not None:
            where = f"{place} goes on with {self.beyond.head!r}: run make notebooks"
        else:
            numbers = TRAINED not in self.cell.metadata.get("tags", [])
            where = difference(ref, test, numbers=numbers)
        self.comparison_traceback = [where] if where else []
        return where is None


class Chapter(plugin.IPyNbFile):
    """A chapter with its reference: the notebook that nbval runs."""

    def collect(self) -> Iterator[Cell]:
        """The chapter's code cells, each with its part of the reference."""
        self.nb = jupytext.read(self.path)
        place = reference_path(self.path)
        try:
            parts = read(place.read_text("utf-8")) if self.compare_outputs else []
        except FileNotFoundError:
            parts = []  # every cell fails, and says what to do
        except ValueError as error:
            raise self.CollectError(f"{place}: {error}; run make notebooks") from None
        cells = code_cells(self.nb)
        for number, (source, part) in enumerate(zip_longest(cells, parts[: len(cells)])):
            # nbval compares a cell that has been run.
            source.update(outputs=part.outputs if part else [], execution_count=number + 1)
            options = defaultdict(bool, check=self.compare_outputs)
            options.update(plugin.find_metadata_tags(source.metadata))
            name = f"Cell {number}"
            cell = Cell.from_parent(self, name=name, cell_num=number, cell=source, options=options)
            cell.part = part
            if number + 1 == len(cells) < len(parts):
                cell.beyond = parts[len(cells)]
            yield cell

    def setup(self) -> None:
        """Start the kernel in the chapter's folder; note the files that it uses."""
        self.started = time.time()
        self.given: dict[str, list[nbformat.NotebookNode]] = {}
        descriptor, self.trace = tempfile.mkstemp(prefix="chapter-")
        os.close(descriptor)
        search = [str(FOLDER / "tracing"), *filter(None, [os.environ.get("PYTHONPATH")])]
        traced = {"PYTHONPATH": os.pathsep.join(search), "CHAPTER_TRACE": self.trace}
        with mock.patch.dict(os.environ, traced):
            super().setup()
        # With the kernel's history, as in Jupyter: without it a semicolon at the end hides nothing.
        self.kernel.execute_cell_input = partial(self.kernel.kc.execute, stop_on_error=False)

    def get_kernel_message(self, timeout: float | None = None, stream: str = "iopub") -> Any:
        """The kernel's next message; outputs are kept as they come, by request."""
        message = super().get_kernel_message(timeout, stream)
        request, kind = message["parent_header"].get("msg_id"), message["msg_type"]
        if kind == "execute_input":
            self.given[request] = []
        elif kind in OUTPUTS and request in self.given:
            self.given[request].append(nbformat.v4.output_from_msg(message))
        return message

    def teardown(self) -> None:
        """Keep the outputs of a chapter that ran to its end, and stop the kernel."""
        try:
            if self.kernel is not None and self.kernel.is_alive() and self._ran():
                self._keep()
        finally:
            Path(self.trace).unlink()
            super().teardown()

    def _ran(self) -> bool:
        cells = code_cells(self.nb)
        return len(self.given) == len(cells) and not any(
            output.output_type == "error"
            for cell, outputs in zip(cells, self.given.values(), strict=True)
            for output in outputs
            if "raises-exception" not in cell.metadata.get("tags", [])
        )

    def _keep(self) -> None:
        used = Path(self.trace).read_text("utf-8").splitlines()
        files = [ROOT / name for name in used if (ROOT / name).is_file()]
        if any(file.stat().st_mtime >= self.started for file in (self.path, *files)):
            return  # changed while the chapter ran
        for cell, outputs in zip(code_cells(self.nb), self.given.values(), strict=True):
            cell.outputs = joined(outputs)
        info = self.kernel.kc.kernel_info(reply=True, timeout=10)["content"]
        self.nb.metadata["language_info"] = info["language_info"]
        page = self.path.relative_to(ROOT).as_posix()
        place = ROOT / freshcache.CACHE
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"):
            freshcache.keep(ROOT, page, self.nb, used, time.time() - self.started)


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs with each run of prints as one: a kernel sends it in pieces, by chance."""
    found: list[nbformat.NotebookNode] = []
    for output in outputs:
        if found and output.get("name") and output.get("name") == found[-1].get("name"):
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Chapter | None:
    """Chapters are collected where nbval is asked for."""
    option = parent.config.option
    if (option.nbval or option.nbval_lax) and file_path.suffix == ".md" and runs(file_path):
        return Chapter.from_parent(parent, path=file_path)
    return None
