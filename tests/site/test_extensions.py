"""The book's own Sphinx extensions, without a build."""

from __future__ import annotations

import sys

from pages import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))

from polish import polish


def test_polish_mends_once() -> None:
    page = (
        '<link rel="preload" as="font" type="font/woff2" crossorigin href="x.woff2" />\n'
        '<div class="bd-sidebar-primary bd-sidebar"></div>'
        '<input id="search-input"/><input id="search-input"/><th class="head"></th><th>a</th>'
        '<section id="proof-content"></section><section id="proof-content"></section>'
    )
    mended = polish(page)
    assert "woff2" not in mended
    assert "proof-content" not in mended
    assert mended.count('id="search-input"') == 1
    assert '<td class="head"></td><th>a</th>' in mended
    assert 'role="region" aria-label="Sidebar"' in mended
    assert polish(mended) == mended
