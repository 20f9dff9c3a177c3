"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from influence_ssl.errors import InfluenceOSError


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
    except RuntimeError as error:
        # torch.save reports a full disk as a RuntimeError of its zip writer.
        if "PytorchStreamWriter" not in str(error) and "write" not in str(error):
            raise
        raise InfluenceOSError(
            f"{path}: cannot be written ({str(error).splitlines()[0]}); "
            "free space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
