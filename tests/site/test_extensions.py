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


def test_the_count_of_claims_is_by_sentence() -> None:
    from influence_lab.experiments import claims
    from ledger import claims_sentence

    sentence = claims.Claim("claim-x", "4", "paper-fig-2", "says", needs="CIFAR-100")
    found = claims.Estimate(0.5, 0.4, 0.6)
    good = claims.reading("a", "words", "> 0", found, claims.above(0.0), "x#y")
    rows = [
        claims.Row(sentence, (good, good), (good,)),
        claims.Row(sentence, (good,), ()),
        claims.Row(sentence, (), (good,)),
    ]
    assert claims_sentence(rows) == (
        "Of the paper's 3 empirical claims 2 are reproduced, 0 are contradicted, for these "
        "encoders or by published numbers, 0 are inconclusive, and 1 are not tested here."
    )
