"""The page of a trace: each query with the images that help it, hurt it or look like it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from influence_ssl.analysis.trace import LISTS, Entry, Found, Trace
from influence_ssl.report.facts import FACTS
from influence_ssl.report.pages import render
from influence_ssl.report.pictures import Pictures
from influence_ssl.version import __version__

TITLES = {
    "helps": "Help most",
    "hurts": "Hurt most",
    "representation": "Nearest by representation",
    "pixels": "Nearest by pixels",
}
_ALSO = {
    "helps": "also helps most",
    "hurts": "also hurts most",
    "representation": "also near: cosine",
    "pixels": "also near: pixels",
}


def page(
    found: Trace, queries: Path, images: Path, digests: Mapping[str, str], bits: int | None = None
) -> str:
    """The page as HTML that opens from disk and contacts no host.

    ``queries`` and ``images`` are the sources of the pictures, ``digests`` those of the images'
    pixels when they were scored, ``bits`` those in use of 16-bit images. Raises
    :class:`InfluenceError` if no image is found.
    """
    places = dict.fromkeys(
        entry.position for one in found.found for which in LISTS for entry in one.lists[which]
    )
    whence = "that were scored"
    shown = Pictures(images, (found.names[i] for i in places), digests, whence, bits=bits)
    asked = Pictures(queries, (one.query for one in found.found), bits=bits)
    return render(
        "trace.html.j2",
        version=__version__,
        trace=found,
        images=len(found.index),
        source=str(images),
        asked_source=str(queries),
        uris=shown.uris,
        asked=asked.uris,
        failed=shown.failed + asked.failed,
        queries=[_query(found, one) for one in found.found],
        reliability=_median([one.reliability for one in found.found]),
        everywhere=_everywhere(found),
        chance=found.top**2 / len(found.index),
        titles=TITLES,
        facts=FACTS,
    )


def _query(found: Trace, one: Found) -> dict[str, Any]:
    return {
        "name": one.query,
        "reliability": one.reliability,
        "same": [found.names[i] for i in one.same],
        "helping": len(one.lists["helps"]),
        "shared": {rival: one.shared(rival) for rival in LISTS[2:]},
        "lists": {
            which: [_card(found, one, which, entry) for entry in one.lists[which]]
            for which in LISTS
        },
    }


def _card(found: Trace, one: Found, which: str, entry: Entry) -> dict[str, Any]:
    also = [
        _ALSO[other]
        for other in LISTS
        if other != which and any(entry.position == e.position for e in one.lists[other])
    ]
    return {**entry._asdict(), "name": found.names[entry.position], "also": also}


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _everywhere(found: Trace) -> dict[str, Any] | None:
    """The image that most often helps most, if chance alone is unlikely to put it in so many lists.

    Chance: each list is a draw of ``top`` of the n images; the binomial tail times n is below 0.05.
    """
    counts = Counter(e.position for one in found.found for e in one.lists["helps"])
    if not counts:
        return None
    (position, count), n = counts.most_common(1)[0], len(found.index)
    if n * binom.sf(count - 1, len(found.found), found.top / n) >= 0.05:
        return None
    return {"name": found.names[position], "count": count}
