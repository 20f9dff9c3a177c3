"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from influence_ssl.errors import InfluenceOSError

_WRITERS = ("PytorchStreamWriter", "inline_container", "os error")


@contextmanager
def replacing(path: Path, *, parents: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it if the block succeeds.

    After an error, including a full disk, the temporary file is removed and an existing ``path`` is
    unchanged. An ``OSError`` becomes an :class:`InfluenceOSError` that names the file. ``parents``:
    whether missing parent folders are created. Where ``path`` is a link, it stays, and the file
    that it names is replaced.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # Such as /dev/null.
        raise InfluenceOSError(f"{str(path)!r} is not a file, so it is not replaced; name a file.")
    # Each process of a group has its own, with the suffix by which writers choose a format.
    temporary = target.with_name(f".{os.getpid()}-{path.name}")
    try:
        try:
            if parents:
                target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            # safetensors creates files that only the owner can read; these are for everyone.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, str(error.strerror or error)) from error
    except (RuntimeError, SafetensorError) as error:
        # Neither torch.save's zip writer nor safetensors reports a full disk as an OSError.
        if not any(text in str(error) for text in _WRITERS):
            raise
        raise _unwritable(path, str(error).splitlines()[0]) from error


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that replaces it and its contents if the block succeeds.

    After an error, ``folder`` is unchanged and the temporary folder is removed. Where it
    is a link, that stays, and the folder that it names is replaced.
    """
    folder = Path(os.path.realpath(folder))
    temporary, before = (folder.with_name(f".{os.getpid()}-{x}-{folder.name}") for x in "ab")
    try:
        try:
            temporary.mkdir()
            yield temporary
            if folder.exists():
                folder.rename(before)
            temporary.rename(folder)
        finally:
            if before.exists() and not folder.exists():
                before.rename(folder)
            for left in (temporary, before):
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        if isinstance(error, InfluenceOSError):
            raise
        raise _unwritable(folder, str(error.strerror or error)) from error


def _unwritable(path: Path, reason: str) -> InfluenceOSError:
    return InfluenceOSError(
        f"{str(path)!r} cannot be written ({reason}); free space or choose another folder."
    )
