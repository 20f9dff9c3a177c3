"""Lock files: what one process at a time works on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from influence_ssl.errors import InfluenceOSError


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock file ``path`` in this process; ``False`` where another holds it.

    With ``wait`` the call returns once the other has let go. The system frees the lock of a process
    that ends in any way, so none is ever left behind; the empty file stays.
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
