"""Search results with their context, also for a book that is opened from disk.

Sphinx fetches every page that it found to show the words around a hit, which a browser refuses for
files. The pages' texts therefore stand in a script of the search page, and are read from there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bs4 import BeautifulSoup

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SCRIPT = "searchtext.js"
_UNSAID = "script, style, .headerlink, .math, .highlight, svg, summary"
_READ = """
window.fetch = async (address) => {
  const root = document.documentElement.dataset.content_root;
  const page = address.slice(root.length).replace(/\\.html$/, "");
  return { text: async () => BOOK_TEXT[page] ?? "" };
};
Search.htmlToText = (text) => text;
"""


def text(html: str) -> str:
    """The running text of a page's article."""
    article = BeautifulSoup(html, "html.parser").find("article")
    if article is None:
        return ""
    for element in article.select(_UNSAID):
        element.decompose()
    return re.sub(r"\s+", " ", article.get_text(" ")).strip()


def _write(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    texts = {name: text((out / f"{name}.html").read_text("utf-8")) for name in app.env.found_docs}
    script = f"const BOOK_TEXT = {json.dumps(texts, ensure_ascii=False, sort_keys=True)};{_READ}"
    (out / "_static" / SCRIPT).write_text(script, "utf-8")


def _link(app: Sphinx, pagename: str, template: str, context: dict[str, Any], tree: Any) -> None:
    if pagename == "search":
        app.add_js_file(SCRIPT, loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the script before formulas are typeset, and load it on the search page."""
    app.connect("html-page-context", _link)
    app.connect("build-finished", _write, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
