"""The data set where it comes as one file: ``INFLUENCE_SSL_DATA`` may name an archive."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from influence_ssl.errors import InfluenceOSError, InfluenceValueError, described

_SPLITS = ("train", "test")


def unpacked(folder: Path) -> None:
    """Unpack the archive that ``INFLUENCE_SSL_DATA`` names into ``folder``, once, and set it so.

    The archive (``.tar``, also compressed) holds ``train`` and ``test`` as folders of classes, at
    its top or in ``cifar10``. A folder is left as it is. Raises :class:`InfluenceError` where the
    variable names neither.
    """
    given = os.environ.get("INFLUENCE_SSL_DATA")
    if not given or Path(given).is_dir():
        return
    if not Path(given).is_file():
        raise InfluenceOSError(
            f"INFLUENCE_SSL_DATA={given!r}: no such folder or archive; give one that is there"
        )
    if not (folder / "cifar10").is_dir():
        _unpack(Path(given), folder)
    os.environ["INFLUENCE_SSL_DATA"] = str(folder.resolve())


def _unpack(archive: Path, folder: Path) -> None:
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with tarfile.open(archive) as members:
            members.extractall(partial, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InfluenceValueError(
            f"{archive}: cannot be unpacked ({described(error)}); give a .tar of CIFAR-10"
        ) from error
    top = partial / "cifar10"
    top = top if top.is_dir() else partial
    if missing := [name for name in _SPLITS if not (top / name).is_dir()]:
        raise InfluenceValueError(
            f"{archive}: no folder {' or '.join(missing)} in it; give a .tar of CIFAR-10's "
            "folders train and test"
        )
    top.rename(folder / "cifar10")
    shutil.rmtree(partial, ignore_errors=True)
