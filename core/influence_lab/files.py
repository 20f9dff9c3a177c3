"""Files that are there whole or not at all, and that one process at a time works on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from influence_ssl.errors import InfluenceOSError

_WRITERS = ("PytorchStreamWriter", "inline_container", "os error")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    After an error, also a full disk, the temporary file is gone and an earlier ``path`` is as it
    was. An ``OSError`` becomes an :class:`InfluenceOSError` that names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # safetensors makes files for the owner's eyes only; a record is for everyone's.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise InfluenceOSError(
            f"{path}: cannot be written ({reason}); free space or choose another folder"
        ) from error
    except (RuntimeError, SafetensorError) as error:
        # Neither torch.save's zip writer nor safetensors reports a full disk as an OSError.
        if not any(text in str(error) for text in _WRITERS):
            raise
        raise InfluenceOSError(
            f"{path}: cannot be written ({str(error).splitlines()[0]}); "
            "free space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


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
