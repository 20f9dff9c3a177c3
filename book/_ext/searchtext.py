"""Search results with their context, also for a book that is opened from disk.

Sphinx fetches every page that it found to show the words around a hit, which a browser refuses for
files. The pages' texts therefore stand in a script of the search page, packed to less than half,
and are read from there once something was found.
"""

from __future__ import annotations

import base64
import gzip
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
let bookTexts;
async function unpack() {
  const bytes = Uint8Array.from(atob(BOOK_TEXT), (character) => character.charCodeAt(0));
  const text = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(text).json();
}
window.fetch = async (address) => {
  const root = document.documentElement.dataset.content_root;
  const page = address.slice(root.length).replace(/\\.html$/, "");
  const texts = await (bookTexts ??= unpack());
  return { text: async () => texts[page] ?? "" };
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
    (out / "_static" / SCRIPT).write_text(script(texts), "utf-8")


def script(texts: dict[str, str]) -> str:
    """What the search page loads: the same for the same texts."""
    written = json.dumps(texts, ensure_ascii=False, sort_keys=True).encode()
    packed = base64.b64encode(gzip.compress(written, mtime=0)).decode()
    return f'const BOOK_TEXT = "{packed}";{_READ}'


def _link(app: Sphinx, pagename: str, template: str, context: dict[str, Any], tree: Any) -> None:
    if pagename == "search":
        app.add_js_file(SCRIPT, loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the script before formulas are typeset, and load it on the search page."""
    app.connect("html-page-context", _link)
    app.connect("build-finished", _write, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
