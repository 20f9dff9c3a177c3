"""The sources of image files: a folder, a zip, a CSV of paths, or a single image."""

from __future__ import annotations

import csv
import itertools
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from influence_ssl.errors import InfluenceOSError, InfluenceValueError, one_line, printable

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
PATH_COLUMNS = ("path", "image_path", "filepath", "file", "file_name", "filename", "image")
_TABLES = (".csv", ".tsv")
_SEPARATORS = ",;\t"
_LISTED = 8
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
    """Raise if ``out`` is a file that the command reads, or has the suffix of an image."""
    if any(path is not None and out.resolve() == path.resolve() for path in inputs):
        raise InfluenceValueError(
            f"{option} {str(out)!r} would overwrite an input; choose another."
        )
    if out.suffix.lower() in {*EXTENSIONS, ".zip"}:
        raise InfluenceValueError(
            f"{option} {str(out)!r} has the suffix of an image; choose another."
        )


Ignored = dict[str, int]
Found = tuple[Files | Zip, list[str], Ignored]


def open_source(source: Path) -> Found:
    """(files, names, numbers of files that are not read, by extension)."""
    if not source.exists():
        raise InfluenceOSError(f"no such folder, zip or CSV: {str(source)!r}.")
    try:
        if source.is_dir():
            return _list_folder(source)
        if _has_extension(source.name):
            return Files([source]), [_printable(source.name)], {}
        if zipfile.is_zipfile(source):
            return _once(source, _list_zip(source))
        if source.suffix.lower() in _TABLES:
            return _once(source, _list_csv(source))
    except OSError as error:
        raise InfluenceOSError(
            f"cannot read {str(error.filename or source)!r}: {error.strerror or error}."
        ) from error
    raise InfluenceValueError(
        f"{str(source)!r} is neither a folder, nor a zip, nor a .csv or .tsv of paths, nor an "
        "image; give the folder that holds the images."
    )


def counted(ignored: Ignored) -> str:
    """Files that were not read, such as "3 .heic, 1 .dng"."""
    kinds = sorted(ignored, key=lambda kind: (-ignored[kind], kind))
    shown = [f"{ignored[kind]} {printable(kind)}" for kind in kinds[:_LISTED]]
    if len(kinds) > _LISTED:
        rest = sum(ignored[kind] for kind in kinds[_LISTED:])
        shown.append(f"{rest} of {len(kinds) - _LISTED} more kinds")
    return ", ".join(shown)


def _once(source: Path, found: Found) -> Found:
    seen: set[str] = set()
    for name in found[1]:
        plain = os.path.normpath(name.replace("\\", "/"))
        if plain in seen:
            raise InfluenceValueError(f"{str(source)!r} names {name!r} twice; list it once.")
        seen.add(plain)
    return found


def _list_folder(root: Path) -> tuple[Files, list[str], Ignored]:
    found: list[tuple[str, Path]] = []
    ignored: Counter[str] = Counter()
    for path in _walk(root, ignored):
        if _is_image(path.name):
            found.append((path.relative_to(root).as_posix(), path))
        else:
            ignored[_kind(path.name)] += 1
    found.sort()
    names = [_printable(name) for name, _ in found]
    return Files([path for _, path in found]), names, dict(ignored)


def _walk(root: Path, ignored: Counter[str]) -> Iterator[Path]:
    """All files below a folder but those in hidden ones.

    Links to folders come last, and only if they lead to folders not yet walked, so that circles end
    and no image is read twice. The other links are counted in ``ignored``.
    """

    def stop(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    tops, linked = [root], False
    while tops:
        links: list[Path] = []
        for top in tops:
            if linked and _identity(top) in seen:
                ignored["link(s) to folders that are read anyway"] += 1
                continue
            for folder, subfolders, files in os.walk(top, onerror=stop):
                seen.add(_identity(folder))
                inside = [Path(folder, name) for name in subfolders if not _HIDDEN.match(name)]
                links += [path for path in inside if path.is_symlink()]
                # A link may lead back to the folder that contains it.
                subfolders[:] = [p.name for p in inside if not (linked and _identity(p) in seen)]
                yield from (Path(folder, name) for name in files)
        tops, linked = sorted(links), True


def _identity(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _list_zip(source: Path) -> tuple[Zip, list[str], Ignored]:
    try:
        with zipfile.ZipFile(source) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except OSError:
        raise
    # A damaged table of contents may fail in any way.
    except Exception as error:
        raise InfluenceOSError(f"{str(source)!r} is a damaged zip: {one_line(error)}.") from error
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
    others = (_kind(m.filename) for m in members if not _is_image(m.filename))
    return Zip(source, images), names, dict(Counter(others))


def separator(source: Path, columns: Sequence[str]) -> str | None:
    """The comma, semicolon or tab with which a table has one of ``columns``, or None."""
    for found in _SEPARATORS:
        header = next(_rows(source, found), [])
        if any(cell.strip().lower() in columns for cell in header):
            return found
    return None


def _rows(source: Path, separator: str) -> Iterator[list[str]]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, delimiter=separator)
        yield from (row for row in rows if any(cell.strip() for cell in row))


def _list_csv(source: Path) -> tuple[Files, list[str], Ignored]:
    try:
        found = separator(source, PATH_COLUMNS)
        if found is None:
            # Without a header, the first cell is a path.
            firsts = ((s, next(_rows(source, s), [""])[0]) for s in _SEPARATORS)
            found = next((s for s, first in firsts if _has_extension(first.strip())), ",")
        rows = list(_rows(source, found))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InfluenceValueError(
            f"{str(source)!r} is not a CSV in UTF-8: {one_line(error)}."
        ) from error
    if not rows:
        return Files([]), [], {}
    header = [cell.strip().lower() for cell in rows[0]]
    column = next((header.index(name) for name in PATH_COLUMNS if name in header), None)
    if column is None and not _has_extension(rows[0][0].strip()):
        raise InfluenceValueError(
            f"{str(source)!r} has no column of paths; name it {' or '.join(PATH_COLUMNS)} "
            f"(found: {', '.join(rows[0])[:100]})."
        )
    lines = itertools.islice(enumerate(rows, 1), column is not None, None)
    column = column or 0
    names = []
    for line, row in lines:
        if len(row) <= column or not row[column].strip():
            raise InfluenceValueError(f"{str(source)!r}: row {line} has no path; add it.")
        names.append(row[column].strip())
    return Files([_place(source.parent, name) for name in names]), names, {}


def _place(folder: Path, name: str) -> Path:
    """The file behind a path in a CSV, which may have been written on Windows."""
    place = folder / name
    if "\\" in name and not os.path.exists(place):
        return folder / name.replace("\\", "/")
    return place


def _is_image(name: str) -> bool:
    return not _is_hidden(name) and _has_extension(name)


def _is_hidden(name: str) -> bool:
    return any(_HIDDEN.match(part) for part in name.replace("\\", "/").split("/"))


def _has_extension(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _kind(name: str) -> str:
    if _is_hidden(name):
        return "hidden"
    return _printable(os.path.splitext(name)[1].lower()) or "without an extension"


def _printable(name: str) -> str:
    """The name with everything written out that not every output file can hold, such as bytes that
    are not UTF-8."""
    found = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return found.replace("\r", "\\r")
