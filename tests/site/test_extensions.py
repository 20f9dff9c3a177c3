"""The book's own Sphinx extensions, without a build."""

from __future__ import annotations

import base64
import math
import re
import sys
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from docutils import nodes
from fontTools.pens.recordingPen import DecomposingRecordingPen
from fontTools.ttLib import TTFont
from matplotlib import pyplot
from PIL import Image, ImageChops, ImageStat
from sphinx.errors import ExtensionError

from pages import ROOT
from test_browser import DESKTOP, PHONE, opened

sys.path.insert(0, str(ROOT / "book" / "_ext"))

import captions
import folding
import formulas
import phone
from polish import (
    COLUMNS,
    drawing,
    enlarge,
    lighten,
    measure_lines,
    polish,
    thin,
    without_measuring,
)


@pytest.mark.parametrize(
    ("text", "columns"),
    [("ab\nabcd\n", 4), ("x" * (COLUMNS + 1) + "\n", COLUMNS), ("&amp;<b>a</b>\n", 2)],
)
def test_a_box_has_the_columns_of_its_longest_line(text: str, columns: int) -> None:
    """Never 0, by which the style sheet would divide: then nothing is seen."""
    page = f'<article class="bd-article"><pre>{text}</pre></article>'
    assert f'<pre style="--columns: {columns}">' in measure_lines(page)


def test_polish_mends_once() -> None:
    page = (
        '<link rel="preload" as="font" type="font/woff2" crossorigin href="x.woff2" />\n'
        '<div class="bd-sidebar-primary bd-sidebar"></div>'
        '<input id="search-input"/><input id="search-input"/><th class="head"></th><th>a</th>'
        "<title>A &#8212; A</title><title>A &#8212; B</title>"
        '<section id="proof-content"></section><section id="proof-content"></section>'
        '<script src="../_static/scripts/bootstrap.js?digest=1"></script><b data-bs-spy="x">c</b>'
    )
    mended = polish(page)
    assert "woff2" not in mended
    assert "proof-content" not in mended
    assert "bootstrap" not in mended
    assert mended.endswith("<b>c</b>")
    assert mended.count('id="search-input"') == 1
    assert '<td class="head"></td><th>a</th>' in mended
    assert 'role="region" aria-label="Sidebar"' in mended
    assert "<title>A</title><title>A &#8212; B</title>" in mended
    assert polish(mended) == mended


def test_the_theme_s_script_loses_its_last_step_alone() -> None:
    last = '"complete"===document.readyState?T():window.addEventListener("load",T)'
    assert without_measuring(f"a();e(f),{last}}})();\n") == "a();e(f)})();\n"
    with pytest.raises(ValueError, match="does not end with"):
        without_measuring("e(f)})();")


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


def test_icons_stand_in_the_page() -> None:
    script = '<script src="a/vendor/fontawesome/6/js/all.min.js"></script>'
    mended = polish(f'{script}<i class="fa-solid fa-bars"></i>')
    assert "fontawesome" not in mended
    assert 'viewBox="0 0 448 512"' in mended
    # The brand of that name stands first in the script.
    assert drawing("list")[2].startswith("M40 48")


def test_a_sheet_keeps_what_some_page_can_use() -> None:
    sheet = (
        ".a,.b:hover{color:red}.gone>p{top:0}@media (min-width:1px){.gone{left:0}.a .b{left:1px}}"
        "p:not(.gone,.a){top:1px}@font-face{font-family:x}html[data-theme=dark] .a{top:2px}"
        "@media print{.gone{top:3px}}"
    )
    kept = thin(sheet, {"a", "b"})
    assert "gone>" not in kept
    assert kept.count("gone") == 1
    for rule in (".a,.b:hover", ".a .b", "p:not(.gone,.a)", "@font-face", "[data-theme=dark] .a"):
        assert rule in kept
    assert "print" not in kept


def test_formulas_are_typeset_once_and_for_all() -> None:
    page = (
        '<script>window.MathJax = {}</script><script defer src="x/mathjax/tex-chtml.js"></script>'
        '<p><span class="math notranslate nohighlight">\\(a &lt; b\\)</span>, c</p>'
        '<div class="math notranslate nohighlight" id="equation-e">\n<span class="eqno">(1)</span>'
        "\\[\\begin{split}x \\\\ y\\end{split}\\]</div>"
    )
    wanted = formulas.formulas(page)
    assert [one.tex for one in wanted] == ["a < b", "\\begin{split}x \\\\ y\\end{split}"]
    markup, css = formulas.typeset(wanted)
    placed = formulas.place(page, markup)
    assert placed.count("<mjx-container") == 2
    assert "--width" in placed
    assert re.search(r'<p><span class="unbroken"><span class="math.*</span>,</span> c</p>', placed)
    assert "<script" not in placed
    assert "\\(" not in placed
    assert formulas.place(placed, {}) == placed
    assert "data:font/woff" in css
    with pytest.raises(ExtensionError, match=r"\\nonsense"):
        formulas.typeset([formulas.Formula(r"\nonsense", False)])


def pixels(svg: str) -> bytes:
    (data,) = re.findall(r"base64,([^\"]+)", svg)
    with Image.open(BytesIO(base64.b64decode(data))) as raster:
        return raster.convert("RGBA").tobytes()


def test_a_drawing_gets_lighter_and_keeps_every_pixel(tmp_path: Path) -> None:
    raster = Image.effect_noise((64, 48), 20).convert("RGBA")
    raster.putalpha(Image.linear_gradient("L").resize((64, 48)))
    written = BytesIO()
    raster.save(written, "PNG")
    data = base64.b64encode(written.getvalue()).decode()
    svg = f'<svg viewBox="0 0 72 36"><image href="data:image/png;base64,{data}"/></svg>'
    light = lighten(svg)
    assert len(light) < 0.9 * len(svg)
    assert pixels(light) == pixels(svg)
    assert lighten(light) == light
    (tmp_path / "a.svg").write_text(light)
    page = '<article class="bd-article"><img alt="x" src="a.svg"/></article>'
    tag = '<img loading="lazy" width="96" height="48" class="chart" alt="x" src="a.svg"/>'
    linked = enlarge(page, tmp_path / "page.html")
    assert linked.count("<a ") == 1
    # The gradient lets the paper through, and so is a chart's.
    assert set(re.findall(r'[\w-]+="[^"]*"', tag)) <= set(re.findall(r'[\w-]+="[^"]*"', linked))


def table(head: str, *rows: str) -> str:
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="dataframe"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def test_a_phone_shows_a_row_as_a_card_where_its_words_do_not_fit() -> None:
    short = table("<td></td><th>a</th>", "<th>b</th><td>1</td>")
    assert phone.fit_tables(short) == short.replace("dataframe", "dataframe phone-fits")
    long = "x" * 24
    heads = f"<th>group</th><th>kind</th><th>{long}</th><th>{long}</th>"
    shown = phone.fit_tables(
        table(
            heads,
            f'<th rowspan="2">g</th><th>one</th><td>{long}</td><td>2</td>',
            "<th>two</th><td>3</td><td>4</td>",
        )
    )
    assert 'class="dataframe phone-cards wide-fits"' in shown
    cards = [
        [(cell.get("data-label"), cell.get_text(), cell.get("class")) for cell in row.children]
        for row in BeautifulSoup(shown, "html.parser").select("tbody tr")
    ]
    # What spans rows stands in each of their cards, and beside the others only there.
    assert [cells[0] for cells in cards] == [(None, "g", None), (None, "g", ["phone-again"])]
    assert [cell[:2] for cell in cards[1][1:]] == [("kind", "two"), (long, "3"), (long, "4")]
    assert shown.count("rowspan") == 1
    assert phone.fit_tables(shown) == shown
    formula = table("<th>a</th>", "<td><mjx-container></mjx-container></td>")
    assert phone.fit_tables(formula) == formula


@pytest.mark.parametrize("style", ["paper-index", "statement-ledger", "which-number"])
def test_a_card_with_a_style_of_its_own_names_its_columns(
    chromium: Any, tmp_path: Path, style: str
) -> None:
    plain = table("<th><p>Where</p></th><th><p>Rests on</p></th>", "<td>a</td><td><p>b</p></td>")
    shown = phone.fit_tables(plain.replace("dataframe", f"{style} table"))
    assert re.findall('data-label="([^"]*)"', shown) == ["Rests on"]
    assert phone.fit_tables(shown) == shown
    css = (ROOT / "book" / "_static" / "book.css").read_text("utf-8")
    path = tmp_path / "card.html"
    path.write_text(f"<!doctype html><style>{css}</style>{shown}", "utf-8")
    before = "e => [...e].map(cell => getComputedStyle(cell, '::before').content)"
    for size, label in ((PHONE, '"Rests on: "'), (DESKTOP, "none")):
        with opened(chromium, path.as_uri(), viewport=size) as view:
            assert view.locator("td").evaluate_all(before) == ["none", label]


def test_a_drawing_in_fewer_letters_looks_the_same(chromium: Any) -> None:
    figure, axes = pyplot.subplots(figsize=(4, 3))
    axes.plot(range(50), [math.sin(x / 3) for x in range(50)], "o-", label="a label")
    axes.legend()
    written = StringIO()
    figure.savefig(written, format="svg")
    pyplot.close(figure)
    svg = written.getvalue()
    light = lighten(svg)
    assert len(light) < 0.85 * len(svg)
    assert lighten(light) == light
    page = chromium.new_page()
    shown = []
    for one in (svg, light):
        page.set_content(one[one.index("<svg") :])
        shown.append(Image.open(BytesIO(page.locator("svg").screenshot())).convert("L"))
    page.close()
    # A thousandth of a point changes the grey of an edge, and nothing more.
    assert shown[0].size == shown[1].size
    assert ImageStat.Stat(ImageChops.difference(*shown)).mean[0] < 0.02


def drawn(font: TTFont) -> dict[int, Any]:
    """What a font draws for each sign, and how far it goes on."""
    glyphs, found = font.getGlyphSet(), {}
    for sign, name in font.getBestCmap().items():
        pen = DecomposingRecordingPen(glyphs)
        glyphs[name].draw(pen)
        found[sign] = (glyphs[name].width, pen.value)
    return found


def test_fonts_have_the_glyphs_of_the_book_alone_as_they_were() -> None:
    tex = r"\sum_a \left( 1 < \frac{\mathbb{R}}{\mathcal{L}} \right) \mathbf{I}"
    _, css = formulas.typeset([formulas.Formula(tex, True)])
    fonts = {
        name: drawn(TTFont(BytesIO(base64.b64decode(data))))
        for name, data in re.findall(r'MJX(TEX[\w-]*);[^}]*?base64,([^"]+)"', css)
    }
    folder = formulas.mathjax() / "output/chtml/fonts/woff-v2"
    files = {"TEX": "Main-Regular", "TEX-I": "Math-Italic", "TEX-A": "AMS-Regular"}
    files |= {"TEX-B": "Main-Bold", "TEX-C": "Calligraphic-Regular", "TEX-S2": "Size2-Regular"}
    for name, file in files.items():
        whole = drawn(TTFont(folder / f"MathJax_{file}.woff"))
        assert fonts[name].items() <= whole.items()
        assert len(fonts[name]) < len(whole)
    signs = {"TEX": "1<", "TEX-I": "a", "TEX-A": "R", "TEX-B": "I", "TEX-C": "L", "TEX-S2": "∑"}
    for name, text in signs.items():
        assert set(map(ord, text)) <= set(fonts[name]), name
    assert len(css) < 50_000


def cell(source: str, *outputs: str) -> nodes.container:
    shown = [nodes.literal_block(text, text) for text in outputs]
    return nodes.container(
        "",
        nodes.container("", nodes.literal_block(source, source), nb_element="cell_code_source"),
        *([nodes.container("", *shown, nb_element="cell_code_output")] if shown else []),
        nb_element="cell_code",
    )


def test_what_folds() -> None:
    assert folding.folded(cell("import numpy as np\nx = 1")) == ("input", "Set-up")
    record = "paper-prop-1a: holds\n  SymPy: yes\n  100 instances: error below 1e-08\n"
    assert folding.folded(cell("ledger.verdict()", record)) == (
        "all",
        "Verdict: holds. Checked: 2 of 2",
    )
    second = "beyond-scaling: definition\n  SymPy: yes\n"
    assert folding.folded(cell("print()", record + second)) == (
        "all",
        "2 verdicts. Checked: 3 of 3",
    )
    assert folding.folded(cell("print()", record + "and more\n")) is None
    assert folding.folded(cell("f()", "{(1, 1): True} 104 False")) == ("all", "Checked by computer")
    assert folding.folded(cell("print(1)", "1")) is None
    assert folding.folded(cell("x = 1\n" * 16, "1")) == ("input", "Code, 16 lines")


def test_a_caption_has_badge_finding_and_folded_provenance() -> None:
    caption = nodes.caption(
        "", "Figure 5: the lowest. More.\nData: ", nodes.literal("", "x"), nodes.Text(".")
    )
    figure = nodes.figure("", nodes.image(), caption, ids=["paper-fig-5"])
    captions.rewrite(figure)
    assert caption.astext() == "Paper, Figure 5 The lowest. More."
    assert "Data: x." in figure.children[-1].astext()
    plain = nodes.figure("", nodes.caption("", "Data: x."), ids=["fig-a"])
    captions.rewrite(plain)
    assert plain.astext() == "Data: x."
