"""What is brought back from the machine: few files of limited size, each written whole.

Small files go into one archive with a manifest. A large one is cut into parts beside it. Where not
everything fits, what is worth least is left out, and the manifest names it. :func:`unpack` puts
all together again and compares the hashes.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from influence_ssl.errors import InfluenceOSError, InfluenceValueError
from influence_ssl.files.writing import replacing

FILES = 8
BYTES = 16 * 2**20
TOTAL = 64 * 2**20
SMALL = 2**20
ARCHIVE = "results.zip"
_MANIFEST = "manifest.json"
# What a zip adds to a member: its two headers with the name twice.
_HEADERS = 400
# For the manifest and the zip's list of members.
_MARGIN = 2**16


def pack(root: Path, names: Sequence[str], out: Path) -> list[str]:
    """Bring the files ``names`` below ``root`` to ``out``, in the order of what they are worth.

    Other files in ``out`` count among the :data:`FILES` and stay. Returns the names left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    before = _manifest(out)
    ours = {ARCHIVE, *(part for one in before.values() for part in one.get("parts", ()))}
    foreign = [p for p in out.iterdir() if p.is_file() and p.name not in ours and p.name[0] != "."]
    slots = FILES - len(foreign) - 1
    total = TOTAL - sum(path.stat().st_size for path in foreign)
    archive, room = io.BytesIO(), min(BYTES, total) - _MARGIN
    files: dict[str, dict[str, Any]] = {}
    left: list[str] = []
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        # Small ones first: then it is known what is left for the large ones.
        for name in sorted(names, key=lambda name: (root / name).stat().st_size > SMALL):
            data = (root / name).read_bytes()
            sha = hashlib.sha256(data).hexdigest()
            row = {"bytes": len(data), "sha256": sha}
            if len(data) <= SMALL:
                # Deflate may make random bytes longer by a thousandth.
                if archive.tell() + 1.001 * len(data) + _HEADERS > room:
                    left.append(name)
                    continue
                members.writestr(name, data)
                files[name] = row
                continue
            pieces = [data[start : start + BYTES] for start in range(0, len(data), BYTES)]
            used = sum(files[n]["bytes"] for n in files if "parts" in files[n])
            if len(pieces) > slots or archive.tell() + _MARGIN + used + len(data) > total:
                left.append(name)
                continue
            slots -= len(pieces)
            stem = name.replace("/", "_")
            parts = [f"{stem}.{number}" for number in range(len(pieces))]
            if before.get(name, {}).get("sha256") != sha:
                for part, piece in zip(parts, pieces, strict=True):
                    with replacing(out / part) as temporary:
                        temporary.write_bytes(piece)
            files[name] = row | {"parts": parts}
        members.writestr(_MANIFEST, json.dumps({"files": files, "left out": left}, indent=1))
    with replacing(out / ARCHIVE) as temporary:
        temporary.write_bytes(archive.getvalue())
    now = {part for one in files.values() for part in one.get("parts", ())}
    for old in ours - now - {ARCHIVE}:
        (out / old).unlink(missing_ok=True)
    return left


def _manifest(out: Path) -> dict[str, dict[str, Any]]:
    if not (out / ARCHIVE).is_file():
        return {}
    try:
        with zipfile.ZipFile(out / ARCHIVE) as members:
            return json.loads(members.read(_MANIFEST))["files"]
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise InfluenceValueError(
            f"{out / ARCHIVE}: not an archive of results ({error}); give an empty --out"
        ) from error


def unpack(out: Path, to: Path) -> list[str]:
    """Write all files that :func:`pack` brought to ``out`` below ``to``; their names.

    Raises :class:`InfluenceError` where a part is missing or a hash differs.
    """
    if not (out / ARCHIVE).is_file():
        raise InfluenceOSError(f"{out}: no {ARCHIVE} in it; give the folder that was brought back")
    files = _manifest(out)
    with zipfile.ZipFile(out / ARCHIVE) as members:
        for name, row in files.items():
            try:
                if parts := row.get("parts"):
                    data = b"".join((out / part).read_bytes() for part in parts)
                else:
                    data = members.read(name)
            except OSError as error:
                raise InfluenceOSError(f"{error.filename}: missing; bring it back too") from error
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                raise InfluenceValueError(f"{out}: {name} is damaged; bring it back again")
            path = (to / name).resolve()
            if to.resolve() not in path.parents:
                raise InfluenceValueError(f"{out}: {name!r} would be written outside {to}")
            with replacing(path, parents=True) as temporary:
                temporary.write_bytes(data)
    return list(files)
