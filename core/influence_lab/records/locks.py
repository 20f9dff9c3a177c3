"""Lock files, which let one process at a time do a piece of work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from influence_ssl.errors import InfluenceOSError


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock file ``path`` in this process; ``False`` if another process holds it.

    With ``wait``, the call returns once the other process has released it. The system frees the
    lock whenever a process ends, so no lock is left behind; the empty file remains.
    """
    # Only on POSIX systems, so not at the top of a module that everything else imports.
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise InfluenceOSError(
            f"{path}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
