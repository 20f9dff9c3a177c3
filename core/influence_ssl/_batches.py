"""Batches made ready for the device: read, with their noise drawn, in memory that it can fetch.

All of this is work for the processor. Threads do it while the device computes on earlier batches.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from influence_ssl._examples import Examples, joined
from influence_ssl._gradients import Capture
from influence_ssl._memory import free_memory
from influence_ssl._store import Columns, Store
from influence_ssl.ahead import Pool, ahead, processors, readers
from influence_ssl.objectives import Batch, Index, Objective

_CPU = torch.device("cpu")
_PIECES = 8  # of a batch for each thread, so that none waits long for another's piece


@dataclass(frozen=True, eq=False)
class Ready:
    """A batch with its examples' indices, and the objective with what it draws for them.

    ``name``: what the store calls the batch; ``stored``: its columns, if the store has them.
    """

    batch: Batch
    index: Index
    objective: Objective
    name: str
    stored: Columns | None


class Batches:
    """Makes batches of ``examples`` ready for ``capture``, in ``workers`` threads.

    With none, the caller's thread does everything, each batch when its turn comes.
    ``None``: one per processor, at most eight, if several threads may read the images, else none;
    one for small images, whose reading is mostly Python code, which one thread at a time can run.
    None either where images in memory are scored on the processor: the noise is a small part of the
    work, and the processor is busy already.
    """

    def __init__(
        self, examples: Examples, capture: Capture, step: int, store: Store | None,
        workers: int | None,
    ) -> None:  # fmt: skip
        self.examples, self.capture, self.store, self.step = examples, capture, store, step
        busy = examples.in_memory and capture.device.type == "cpu"
        most = processors() if examples.in_memory else readers(examples.values)
        own = most if examples.threads and not busy else 0
        self.threads = own if workers is None else workers
        self._kept: dict[int, Future[Batch]] | None = None

    def keep(self, images: int) -> None:
        """Keep what is read for later draws and passes, if it fits into a quarter of the memory."""
        size = images * self.examples.bytes
        if self._kept is None and not self.examples.in_memory and size < free_memory(_CPU) / 4:
            self._kept = {}

    def ready(
        self, tasks: Sequence[tuple[int, range]], needed: Callable[[int], set[str]]
    ) -> Generator[Ready, None, None]:
        """The batches of ``tasks``, each a draw and its rows, in their order; to be closed.

        ``needed``: the columns of a draw, without which a stored batch is not taken.
        """
        # A batch that need not be read leaves nothing to do ahead.
        threads = 0 if self.examples.whole and len(tasks) < 2 else self.threads
        # What waits are images and noise, in an eighth of the memory at most.
        room = free_memory(_CPU) / 8 / (2 * self.step * self.examples.bytes)
        most = max(2, min(threads + 2, int(room)))

        def submit(pool: Pool, task: tuple[int, range]) -> Future[Ready]:
            draw, rows = task
            read = self._read(pool, rows, threads)
            return pool.submit(self._ready, draw, rows, read, needed(draw), threads > 0)

        return ahead(submit, tasks, threads, most)

    def _read(self, pool: Pool, rows: range, threads: int) -> Future[Batch]:
        examples, kept = self.examples, self._kept
        if examples.in_memory:
            return pool.submit(examples.batch, rows)
        if kept is not None and rows.start in kept:
            return kept[rows.start]
        step = len(rows) if threads < 1 else -(-len(rows) // (_PIECES * threads))
        parts = [rows[start : start + step] for start in range(0, len(rows), step)]
        found = pool.submit(_joined, [pool.submit(examples.batch, part) for part in parts])
        if kept is not None:
            kept[rows.start] = found
        return found

    def _ready(
        self, draw: int, rows: range, read: Future[Batch], needed: set[str], drawn: bool
    ) -> Ready:
        objective, seed = self.capture.objective, self.capture.seed
        index = self.examples.index[rows.start : rows.stop]
        name, stored = "", None
        if self.store is not None:
            name = self.store.name(draw, rows.start, read.result(), index)
            stored = self.store.find(name, needed)
        card = self.capture.device if self.capture.device.type == "cuda" else None
        with nullcontext() if card is None else torch.cuda.device(card):
            if drawn and stored is None and hasattr(objective, "ahead"):
                shape = (len(rows), *self.examples.shape)
                objective = objective.ahead(shape, index, draw, seed, card is not None)
            batch = read.result()
            if card is not None:  # copies from other memory would wait for the device
                batch = tuple(x.pin_memory() if x.device.type == "cpu" else x for x in batch)
        return Ready(batch, index, objective, name, stored)


def _joined(parts: list[Future[Batch]]) -> Batch:
    return joined([part.result() for part in parts])
