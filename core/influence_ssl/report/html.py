"""The report of a score file: one HTML file that opens from disk and contacts no host."""

from __future__ import annotations

import datetime
import json as jsonlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from markupsafe import Markup

from influence_ssl.analysis.ranking import Table, read_labels, read_scores
from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.sources import counted, refuse_overwriting
from influence_ssl.files.writing import replacing
from influence_ssl.report.chart import chart
from influence_ssl.report.content import FIRST, PICTURED, content, number
from influence_ssl.report.facts import FACTS
from influence_ssl.report.pages import code, render
from influence_ssl.report.pictures import Pictures
from influence_ssl.report.plane import plane
from influence_ssl.report.rows import beside, chosen, taken, write_all

Representations = tuple[Sequence[str], Float[np.ndarray, "n d"], Float64[np.ndarray, " n"]]
"""Names, f(x) and scores."""
# A program that rewrites a CSV may round the last of 17 digits; two runs differ in more.
_SAME = 1e-9


def write(
    scores: Path,
    out: Path,
    images: Path | None = None,
    table: Path | None = None,
    json: Path | None = None,
    representations: Representations | None = None,
) -> Path | None:
    """Write the report of the file ``scores`` to ``out``, and its content to ``json``.

    ``images`` is the folder, zip or CSV of paths that was scored; without it the report has no
    pictures. A file that has changed since is not shown. ``table`` is a CSV with the images' paths
    and any columns to break the scores down by. ``representations`` are names, f(x) and scores of
    the run that wrote the file; the page draws a map of f(x).
    The page of a large set contains only some of its rows; all of them are then written to a CSV
    beside it, whose path is returned. Files are written whole or not at all. Raises
    :class:`InfluenceError`.
    """
    refuse_overwriting("--out", out, [scores, table, images])
    if json is not None:
        refuse_overwriting("--json", json, [scores, table, images, out])
    rows = read_scores(scores)
    if not rows.named and (images is not None or table is not None):
        raise InfluenceValueError(
            f"{str(scores)!r} has no names, so {'--images' if images else '--table'} cannot be "
            "joined to it; score the images with names."
        )
    labels = None if table is None else read_labels(table, rows.name)
    found = content(rows, scores.name, labels)
    found["map"] = None
    if representations is not None:
        z = _same_run(rows, scores, *representations)
        found["map"] = _add_map(found["rows"], z)
    found["date"] = datetime.date.today().isoformat()
    digests = dict(zip(rows.name, rows.sha256 or [], strict=False))
    pictures = None if images is None else Pictures(images, _shown(found), files=digests)
    for group in found["groups"]["shown"] if found["groups"] else []:
        if pictures is not None:
            likeness = pictures.likeness([member["name"] for member in group["members"]])
            group["pixels"] = None if likeness is None else number(likeness)
        group["reason"] = _reason(group)
    found["pictures"] = {
        "source": None if images is None else str(images),
        "failed": [] if pictures is None else pictures.failed,
    }
    found = _finite(found)
    some = chosen(found["rows"], found["outliers"]["rows"] if found["outliers"] else [])
    every = None if some is None else beside(out)
    if every is not None:
        refuse_overwriting("the rows beside --out", every, [scores, table, images, json])
    page = _render(found, {} if pictures is None else pictures.uris, some, every)
    text = jsonlib.dumps(found, ensure_ascii=False, allow_nan=False, default=str)
    for path, written in ((out, page), (json, text)):
        if path is not None:
            with replacing(path) as temporary:
                temporary.write_text(written, encoding="utf-8", errors="backslashreplace")
    if every is not None:
        with (
            replacing(every) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            write_all(found["rows"], file)
    return every


def _same_run(
    rows: Table,
    scores: Path,
    names: Sequence[str],
    z: Float[np.ndarray, "n d"],
    values: Float64[np.ndarray, " n"],
) -> Float[np.ndarray, "m d"]:
    """f(x) of each row; raises :class:`InfluenceError` if another run made it.

    Names, settings and even weights may agree between two runs of different code. Scores do not.
    """
    position = {name: k for k, name in enumerate(names)}
    again = "give the folder that the same run of influence-ssl score wrote."
    lost = next((name for name in rows.name if name not in position), None)
    if lost is not None:
        raise InfluenceValueError(f"--kept contains no representation of {lost!r}; {again}")
    order = [position[name] for name in rows.name]
    other = np.flatnonzero(~np.isclose(values[order], rows.score, rtol=_SAME, atol=0))
    if len(other):
        raise InfluenceValueError(
            f"--kept is of another run than {str(scores)!r}: the two have different scores for "
            f"{len(other)} of {len(rows)} images, {rows.name[other[0]]!r} first; {again}"
        )
    return z[order]


def _add_map(rows: dict[str, Any], z: Float[np.ndarray, "n d"]) -> list[float]:
    """Two columns with the coordinates of each row; the shares of the variance."""
    found = plane(z)
    for axis, key in enumerate(("map_x", "map_y")):
        rows["columns"].append({"key": key, "kind": "number"})
        rows["values"].append(np.round(found.points[:, axis], 4).tolist())
    return list(found.shares)


def _finite(value: Any) -> Any:
    """The same value with None for numbers that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(found: dict[str, Any]) -> list[str]:
    entries = [*found["highest"], *found["lowest"]]
    outliers = found["outliers"]["shown"] if found["outliers"] else []
    entries += outliers
    for group in found["groups"]["shown"] if found["groups"] else []:
        entries += group["members"]
    beside = [entry["nearest"] for entry in outliers if "nearest" in entry]
    return list(dict.fromkeys([*(entry["name"] for entry in entries), *beside]))


def _reason(group: dict[str, Any]) -> str:
    """The reasons for the group that the files state."""
    files, size = group["files"], group["size"]
    if files == 1:
        return "Copies of one file."
    found = []
    if group["rules"]:
        found.append(f"grouped by {', '.join(group['rules'])}")
    if group["rule_pixels"] is not None:
        found.append(
            f"its least alike pair: pixels at full detail {group['rule_pixels']:.3f}, whitened "
            f"representation {group['rule_representation']:.3f}"
        )
    if group["same_file"]:
        found.append(f"{size} images, {files} different files")
    if group["similarity"] is not None:
        found.append(f"cosine of representations {group['similarity']:.3f}")
    # The small pictures are compared upright; at full detail they were turned as well.
    if group["pixels"] is not None and group["rule_pixels"] is None:
        found.append(f"pixels {group['pixels']:.3f}")
    text = "; ".join(found) or "grouped by the score file without a stated reason"
    return f"{text[0].upper()}{text[1:]}."


def _render(
    found: dict[str, Any],
    uris: dict[str, tuple[str, int, int]],
    some: list[int] | None,
    every: Path | None,
) -> str:
    outliers = found["outliers"]["rows"] if found["outliers"] else []
    if some is not None:
        place = {row: k for k, row in enumerate(some)}
        outliers = [place[row] for row in outliers if row in place]
    return render(
        "template.html.j2",
        report=found | {"first": FIRST, "pictured": PICTURED},
        facts=FACTS,
        uris=uris,
        chart=chart(found["distribution"]),
        flat=list(_flat(found["settings"])),
        rows=_in_script(taken(found["rows"], some)),
        held=None if some is None else len(some),
        every=None if every is None else every.name,
        left_out=counted(found["ignored"]),
        subsets=_in_script({"outliers": outliers, "top": found["top"], "total": found["images"]}),
        script=code("report.js"),
    )


def _in_script(value: Any) -> Markup:
    # A "<" could end the script element.
    text = jsonlib.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _flat(settings: dict[str, Any], above: str = "") -> Any:
    for key, value in settings.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and len(value) <= 12 and value:
            yield from _flat(value, f"{name}: ")
        else:
            yield name, value if isinstance(value, str) else jsonlib.dumps(value, default=str)
