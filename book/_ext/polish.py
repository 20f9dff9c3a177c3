"""Mend in the finished pages what the theme's templates leave open.

Each line is a defect that a browser or axe reports on the theme's own markup. They are mended in
the files and not by a script, so that the pages are right before and without scripts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_MENDED = (
    # A preloaded font counts as a request to another origin when a page is opened from disk.
    (re.compile(r'<link rel="preload" as="font"[^>]*>\n?'), ""),
    # The role is deprecated, and a list must hold list items.
    (re.compile(r'role="doc-biblioentry"'), 'role="listitem"'),
    # Every box and every unnamed proof of a page has the same id.
    (re.compile(r' id="(?:proof|(?:exercise|proof|solution)-content)"'), ""),
    # A table's corner without a text is no heading.
    (re.compile(r"<th( class=\"[^\"]*\")?>(?:<p></p>)?</th>"), r"<td\1></td>"),
    # What lies outside every landmark is skipped by screen readers.
    (
        re.compile(r'<div class="bd-sidebar-primary bd-sidebar'),
        '<div role="region" aria-label="Sidebar" class="bd-sidebar-primary bd-sidebar',
    ),
)
# The search page has the search form twice, with the same id.
_FORM_ID = 'id="search-input"'


def polish(html: str) -> str:
    """One page's markup, mended."""
    for pattern, replacement in _MENDED:
        html = pattern.sub(replacement, html)
    first, found, rest = html.partition(_FORM_ID)
    return first + found + rest.replace(_FORM_ID, 'id="search-input-page"')


def _polish_all(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        html = path.read_text("utf-8")
        mended = polish(html)
        if mended != html:
            path.write_text(mended, "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Run when all pages are written."""
    app.connect("build-finished", _polish_all)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
