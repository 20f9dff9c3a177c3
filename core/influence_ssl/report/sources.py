"""Where image files come from: a folder, a zip or a CSV of paths."""

from __future__ import annotations

import csv
import itertools
import os
import re
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path

from influence_ssl.errors import InfluenceOSError, InfluenceValueError

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
PATH_COLUMNS = ("path", "file", "filename", "image")
_HIDDEN = re.compile(r"\.[^/]|__MACOSX$")


class Files:
    """Files on disk."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def size(self, k: int) -> int:
        found = self._paths[k].stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        return found.st_size

    def read(self, k: int) -> bytes:
        return self._paths[k].read_bytes()


class Zip:
    """Members of a zip, read in place."""

    def __init__(self, path: Path, members: list[zipfile.ZipInfo]) -> None:
        self._path = path
        self._members = members
        self._handle: tuple[int, zipfile.ZipFile] | None = None

    def size(self, k: int) -> int:
        return self._members[k].file_size

    def read(self, k: int) -> bytes:
        # A forked worker would share the parent's file position, so each process opens its own.
        handle = self._handle
        if handle is None or handle[0] != os.getpid():
            handle = self._handle = (os.getpid(), zipfile.ZipFile(self._path))
        return handle[1].read(self._members[k])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handle": None}


def refuse_overwriting(option: str, out: Path, inputs: Iterable[Path | None]) -> None:
    """Raise where ``out`` is a file that the command reads, or would take an image's place."""
    if any(path is not None and out.resolve() == path.resolve() for path in inputs):
        raise InfluenceValueError(f"{option} {str(out)!r} would overwrite what it is made from.")
    if out.suffix.lower() in {*EXTENSIONS, ".zip"}:
        raise InfluenceValueError(f"{option} {str(out)!r} has the suffix of images; take another.")


def open_source(source: Path) -> tuple[Files | Zip, list[str], int]:
    """(files, names, number of files that are no images)."""
    if not source.exists():
        raise InfluenceOSError(f"no such folder, zip or CSV: {str(source)!r}.")
    try:
        if source.is_dir():
            return _list_folder(source)
        if zipfile.is_zipfile(source):
            return _once(source, _list_zip(source))
        if source.suffix.lower() == ".csv":
            return _once(source, _list_csv(source))
    except OSError as error:
        raise InfluenceOSError(
            f"cannot read {str(error.filename or source)!r}: {error.strerror or error}."
        ) from error
    except zipfile.BadZipFile as error:
        raise InfluenceOSError(f"{str(source)!r} is a damaged zip: {one_line(error)}.") from error
    raise InfluenceValueError(
        f"{str(source)!r} is neither a folder, nor a zip, nor a .csv of paths; "
        "for a few images give the folder that holds them."
    )


def _once(
    source: Path, found: tuple[Files | Zip, list[str], int]
) -> tuple[Files | Zip, list[str], int]:
    seen: set[str] = set()
    for name in found[1]:
        plain = os.path.normpath(name)
        if plain in seen:
            raise InfluenceValueError(f"{str(source)!r} names {name!r} twice; list it once.")
        seen.add(plain)
    return found


def _list_folder(root: Path) -> tuple[Files, list[str], int]:
    def stop(error: OSError) -> None:
        raise error

    found: list[tuple[str, Path]] = []
    ignored = 0
    for folder, subfolders, files in os.walk(root, onerror=stop):
        subfolders[:] = [name for name in subfolders if not _HIDDEN.match(name)]
        for file in files:
            path = Path(folder, file)
            if _is_image(file):
                found.append((path.relative_to(root).as_posix(), path))
            else:
                ignored += 1
    found.sort()
    return Files([path for _, path in found]), [_printable(name) for name, _ in found], ignored


def _list_zip(source: Path) -> tuple[Zip, list[str], int]:
    with zipfile.ZipFile(source) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or parts[0].endswith(":"):
            raise InfluenceValueError(
                f"{str(source)!r} holds the unsafe name {member.filename!r}, which leads out of "
                "the archive; pack it again from inside the folder."
            )
    images = [member for member in members if _is_image(member.filename)]
    images.sort(key=lambda member: member.filename)
    names = [_printable(member.filename) for member in images]
    return Zip(source, images), names, len(members) - len(images)


def _list_csv(source: Path) -> tuple[Files, list[str], int]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InfluenceValueError(
            f"{str(source)!r} is not a CSV in UTF-8: {one_line(error)}."
        ) from error
    if not rows:
        return Files([]), [], 0
    header = [cell.strip().lower() for cell in rows[0]]
    column = next((header.index(name) for name in PATH_COLUMNS if name in header), None)
    if column is None and Path(rows[0][0]).suffix.lower() not in EXTENSIONS:
        raise InfluenceValueError(
            f"{str(source)!r} has no column of paths; call it {' or '.join(PATH_COLUMNS)} "
            f"(found: {', '.join(rows[0])[:100]})."
        )
    lines = itertools.islice(enumerate(rows, 1), column is not None, None)
    column = column or 0
    names = []
    for line, row in lines:
        if len(row) <= column or not row[column].strip():
            raise InfluenceValueError(f"{str(source)!r}: row {line} has no path.")
        names.append(row[column].strip())
    return Files([source.parent / name for name in names]), names, 0


def _is_image(name: str) -> bool:
    hidden = any(_HIDDEN.match(part) for part in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in EXTENSIONS


def _printable(name: str) -> str:
    """The name with what not every output file can hold, such as bytes that are not UTF-8, written
    out."""
    found = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return found.replace("\r", "\\r")


def one_line(error: Exception) -> str:
    """An error's message without line breaks and final stop."""
    return " ".join(str(error).split()).rstrip(".")
