"""Work that threads do ahead of whoever takes its results, in order and in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_MOST = 8
_SMALL = 3 * 64 * 64  # values of an image from which on a second thread does not slow the first
_EACH = 4  # tasks ahead for each thread, where they are short


class Pool(Protocol):
    """What takes a call and promises its result."""

    def submit(self, call: Callable[..., R], /, *arguments: Any) -> Future[R]: ...


class _Here:
    """Makes each call at once, in the caller's thread."""

    def submit(self, call: Callable[..., R], /, *arguments: Any) -> Future[R]:
        found: Future[R] = Future()
        found.set_result(call(*arguments))
        return found


def processors() -> int:
    """Threads where nobody says how many: one per processor of this process, at most 8."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux
    return min(_MOST, len(allowed(0)) if allowed else os.cpu_count() or 1)


def readers(values: int) -> int:
    """Threads that read images of so many values where nobody says how many.

    Reading small ones is mostly Python code, which one thread at a time can run: they have one.
    """
    return 1 if values < _SMALL else processors()


def in_threads(
    call: Callable[[T], R], tasks: Iterable[T], workers: int | None = None
) -> Generator[R, None, None]:
    """The results of ``call(task)`` in the order of the tasks, see :func:`ahead`."""
    threads = processors() if workers is None else workers
    return ahead(lambda pool, task: pool.submit(call, task), tasks, threads, _EACH * threads)


def ahead(
    submit: Callable[[Pool, T], Future[R]], tasks: Iterable[T], threads: int, most: int
) -> Generator[R, None, None]:
    """The results of ``submit(pool, task)`` in the order of the tasks.

    At most ``most`` tasks are begun and not yet taken; without ``threads``, each is done in the
    caller's thread when its turn comes. A task may wait for calls that ``submit`` made
    before it: the pool begins calls in their order. An error is raised when its task's turn comes.
    Close the iterator (``contextlib.closing``): then what has not begun is dropped, and no thread
    is left. PyTorch's operations take one processor in each of these threads.
    """
    todo, waiting = iter(tasks), deque[Future[R]]()
    threaded, own = threads > 0, torch.get_num_threads()
    # Each thread would otherwise start helpers of its own, which wait in a loop for more to do.
    pool = (
        ThreadPoolExecutor(threads, "influence-ssl", torch.set_num_threads, (1,))
        if threaded
        else None
    )
    try:
        while True:
            for task in islice(todo, (most if threaded else 1) - len(waiting)):
                waiting.append(submit(pool or _Here(), task))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(own)  # for threads that start later
