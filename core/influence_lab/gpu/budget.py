"""The time that a call may take, by its own clock."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

MINUTES = 9
"""Of a call that names no budget. Its last :data:`RESERVE` seconds are for packing."""

RESERVE = 10.0


class OutOfTime(BaseException):
    """The time of a call is over in the middle of a step; no error that anyone may handle."""


class Budget:
    """So many seconds from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, negative when the time is over."""
        return self._end - self.clock()


@contextmanager
def ending(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` where what is done here takes longer.

    Python prints and drops what is raised in a callback, as of the garbage collector; so it is
    raised again every two seconds until the block is left.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), 2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
