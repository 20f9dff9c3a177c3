"""Mend in the finished pages what the theme's templates leave open, and make them light.

Each line is a defect that a browser or axe reports on the theme's own markup. They are mended in
the files and not by a script, so that the pages are right before and without scripts.

The theme draws ten icons with a script of 1.5 MB that holds all of Font Awesome: the ten stand in
the pages instead. Of the style sheets those rules stay whose classes some page or script can have.
Of Bootstrap's script of 80 kB the pages would use the mark in the contents and the tooltips;
`book.js` has the former in ten lines, and a browser shows titles by itself.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydata_sphinx_theme
import tinycss2
from PIL import Image

import phone
import searchtext

if TYPE_CHECKING:
    from sphinx.application import Sphinx

COLUMNS = 100
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
    # The first page's title is the book's own.
    (re.compile(r"<title>(.*?) &#8212; \1</title>"), r"<title>\1</title>"),
    # The theme is known before anything is drawn. If a script settles it once the page is there,
    # all of the page is styled twice, and a dark one flashes white.
    (
        re.compile(r'dataset\.theme = localStorage\.getItem\("theme"\) \|\| "auto";'),
        "dataset.theme = document.documentElement.dataset.mode !== 'auto' ? "
        "document.documentElement.dataset.mode : "
        "matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';",
    ),
    # `book.js` has what is used of it.
    (re.compile(r"\s*<(?:script|link) [^>]*scripts/bootstrap\.js[^>]*>(?:</script>)?"), ""),
    (re.compile(r' data-bs-[\w-]+="[^"]*"'), ""),
    # All of Font Awesome; `_icon` has what is used.
    (re.compile(r"\s*<(?:script|link) [^>]*vendor/fontawesome[^>]*>(?:</script>)?"), ""),
)
# The search page has the search form twice, with the same id.
_FORM_ID = 'id="search-input"'
_ICON = re.compile(r'<(?P<tag>i|span) class="([^"]*\bfa-solid\b[^"]*)"([^>]*)></(?P=tag)>')
_SIZES = {"fa-solid", "fa-lg", "fa-fw"}
# At its load a page measures each box that may scroll after it has changed the one before, and is
# laid out for each; `book.js` measures all of them first.
_MEASURED = re.compile(
    r',"complete"===document\.readyState\?(\w+)\(\):window\.addEventListener\("load",\1\)(?=\}\)\(\);)'
)
_IMAGE = re.compile(
    r'(?P<link><a class="reference internal image-reference"[^>]*>)?'
    r'(?P<image><img [^>]*?src="(?P<source>[^":]+)"[^>]*?/?>)(?(link)\s*</a>)'
)
_ARTICLE = re.compile(r'<article class="bd-article".*?</article>', re.S)
_PRE = re.compile(r"(?<=<pre)(?=>(?P<text>.*?)</pre>)", re.S)
_TAG = re.compile(r"<[^>]+>|&[#\w]+;")
_RASTER = re.compile(r'href="data:image/\w+;base64,\s*([^"]+)"')
_BOX = re.compile(r'viewBox="\S+ \S+ (\S+) ([^"\s]+)"')
_PNG = re.compile(r'href="data:image/png;base64,\s*([^"]+)"')
_UNSEEN = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>", re.S)
_PATH = re.compile(r'(?<=\bd=")[^"]+')
_PLACE = re.compile(r'(?<=\b[xy]=")[^"]+|(?<=translate\()[^)]+')
_DIGITS = re.compile(r"-?\d+\.\d{4,}")
_SPACE = re.compile(r"\s*([A-Za-z]|$)\s*")
_CLASS = re.compile(r"\.(-?[A-Za-z_][\w-]*)")
_CLASSES = re.compile(r'\bclass="([^"]*)"')
_SCRIPT = re.compile(r"<script[^>]*>(.+?)</script>", re.S)
_WORD = re.compile(r"-?[A-Za-z_][\w-]*")


def polish(html: str) -> str:
    """One page's markup, mended."""
    for pattern, replacement in _MENDED:
        html = pattern.sub(replacement, html)
    html = _ICON.sub(_icon, html)
    first, found, rest = html.partition(_FORM_ID)
    return first + found + rest.replace(_FORM_ID, 'id="search-input-page"')


def without_measuring(script: str) -> str:
    """The theme's script without its search for boxes that scroll."""
    shorter, found = _MEASURED.subn("", script)
    if found != 1:
        raise ValueError("The theme's script does not end with its search for boxes that scroll")
    return shorter


def _icon(match: re.Match[str]) -> str:
    classes = match[2].split()
    (name,) = (c.removeprefix("fa-") for c in classes if c.startswith("fa-") and c not in _SIZES)
    width, height, path = drawing(name)
    return (
        f'<svg class="svg-icon {match[2]}"{match[3]} viewBox="0 0 {width} {height}" '
        f'fill="currentColor" aria-hidden="true"><path d="{path}"></path></svg>'
    )


@cache
def _font_awesome() -> str:
    theme = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme"
    (script,) = (theme / "static" / "vendor" / "fontawesome").glob("*/js/all.min.js")
    return script.read_text("utf-8")


@cache
def drawing(name: str) -> tuple[str, str, str]:
    """Width, height and path of a solid icon; brands and outlines stand before it in the script."""
    entry = rf'[{{,]"?{re.escape(name)}"?:\[(\d+),(\d+),\[[^\]]*\],"\w+","([^"]+)"'
    found = re.findall(entry, _font_awesome())
    if not found:
        raise ValueError(f"Font Awesome has no icon {name!r}")
    width, height, path = found[-1]
    return width, height, path


def enlarge(html: str, page: Path) -> str:
    """Every picture of a page's text leads to itself at full size; charts are named as such."""

    def link(match: re.Match[str]) -> str:
        image, source = match["image"], match["source"]
        path = page.parent / source
        if path.suffix == ".svg" and path.is_file() and is_chart(path):
            image = _with_class(image, "chart")
        if path.is_file():
            # Loaded when it comes near; its place is kept free till then.
            width, height = extent(path)
            size = f'loading="lazy" width="{width}" height="{height}" '
            image = image.replace("<img ", f"<img {size}", 1)
        return f'<a class="enlarge" href="{source}">{image}</a>'

    def in_article(match: re.Match[str]) -> str:
        return match[0] if 'class="enlarge"' in match[0] else _IMAGE.sub(link, match[0])

    return _ARTICLE.sub(in_article, html)


def _with_class(image: str, name: str) -> str:
    if ' class="' in image:
        return image.replace(' class="', f' class="{name} ', 1)
    return image.replace("<img ", f'<img class="{name}" ', 1)


def extent(path: Path) -> tuple[int, int]:
    """A picture's width and height in pixels of the page."""
    if path.suffix != ".svg":
        with Image.open(path) as raster:
            return raster.size
    (width, height), *_ = _BOX.findall(path.read_text("utf-8"))
    # Matplotlib's unit is the point.
    return round(float(width) * 4 / 3), round(float(height) * 4 / 3)


def lighten(svg: str) -> str:
    """A drawing in fewer letters that looks the same.

    Its pixels are lossless WebP where that is shorter than PNG. Its places are written to a
    thousandth of a point, and what is seen only by who reads it as a text is left out.
    """

    def shorter(match: re.Match[str]) -> str:
        with Image.open(BytesIO(base64.b64decode(match[1]))) as raster:
            written = BytesIO()
            raster.convert("RGBA").save(written, "WEBP", lossless=True, exact=True)
        data = base64.b64encode(written.getvalue()).decode()
        return f'href="data:image/webp;base64,{data}"' if len(data) < len(match[1]) else match[0]

    svg = _PNG.sub(shorter, _UNSEEN.sub("", svg))
    svg = _PATH.sub(lambda path: _SPACE.sub(r"\1", _rounded(path)), svg)
    return re.sub(r">\s+<", "><", _PLACE.sub(_rounded, svg))


def _rounded(match: re.Match[str]) -> str:
    return _DIGITS.sub(lambda number: f"{float(number[0]):.3f}".rstrip("0").rstrip("."), match[0])


@cache
def is_chart(path: Path) -> bool:
    """Whether a drawing has no photograph in it: what it has of pixels lets the paper through."""
    for data in _RASTER.findall(path.read_text("utf-8")):
        with Image.open(BytesIO(base64.b64decode(data))) as raster:
            if min(raster.convert("RGBA").getchannel("A").tobytes()) == 255:
                return False
    return True


def measure_lines(html: str) -> str:
    """Say of every code box how many columns it has; the style sheet fits it into its place.

    Lines of more than 100 columns are running text, and wrap.
    """

    def columns(match: re.Match[str]) -> str:
        lines = _TAG.sub(lambda tag: "" if tag[0][0] == "<" else "x", match["text"]).split("\n")
        widths = [len(line) for line in lines if 0 < len(line) <= COLUMNS]
        return f' style="--columns: {max(widths, default=COLUMNS)}"'

    return _ARTICLE.sub(lambda article: _PRE.sub(columns, article[0]), html)


def classes(pages: Iterable[str], scripts: Iterable[str]) -> set[str]:
    """Every class that a page has, and every word of a script: it may set it as a class."""
    texts = [*scripts]
    found: set[str] = set()
    for page in pages:
        found.update(name for value in _CLASSES.findall(page) for name in value.split())
        texts += _SCRIPT.findall(page)
    return found.union(*(_WORD.findall(text) for text in texts))


def thin(css: str, known: set[str]) -> str:
    """The style sheet without the rules that ask for a class that is in ``known`` nowhere."""
    return _thin(tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True), known)


def _thin(rules: list[Any], known: set[str]) -> str:
    kept = []
    for rule in rules:
        if rule.type == "qualified-rule":
            selectors = tinycss2.serialize(rule.prelude)
            asked = [s for s in _split(selectors) if set(_CLASS.findall(_positive(s))) <= known]
            if asked:
                kept.append(",".join(asked) + "{" + tinycss2.serialize(rule.content) + "}")
        elif rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports"):
            inner = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
            if text := _thin(inner, known):
                prelude = tinycss2.serialize(rule.prelude)
                kept.append(f"@{rule.at_keyword}{prelude}{{{text}}}")
        else:
            kept.append(rule.serialize())
    return "".join(kept)


def _split(selectors: str) -> list[str]:
    """The selectors of a list; a comma within brackets divides none."""
    parts, depth = [""], 0
    for character in selectors:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _positive(selector: str) -> str:
    """Without what stands in brackets: `:not(.a)` holds where there is no `a`."""
    return re.sub(r"\([^()]*(?:\([^()]*\)[^()]*)*\)|\[[^\]]*\]", "", selector)


def _polish_all(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    pages = {}
    for path in sorted(out.rglob("*.html")):
        html = path.read_text("utf-8")
        pages[path] = polish(html)
        if "--columns" not in html:
            pages[path] = measure_lines(phone.fit_tables(enlarge(pages[path], path)))
        if pages[path] != html:
            path.write_text(pages[path], "utf-8")
    for path in sorted((out / "_images").glob("*.svg")):
        svg = path.read_text("utf-8")
        if (light := lighten(svg)) != svg:
            path.write_text(light, "utf-8")
    static = out / "_static"
    theme = static / "scripts" / "pydata-sphinx-theme.js"
    if (static / "scripts" / "bootstrap.js").exists():
        (static / "scripts" / "bootstrap.js").unlink()
        theme.write_text(without_measuring(theme.read_text("utf-8")), "utf-8")
    scripts = [path for path in static.rglob("*.js") if path.name != searchtext.SCRIPT]
    known = classes(pages.values(), (path.read_text("utf-8") for path in scripts))
    for path in (*static.glob("styles/*.css"), *static.glob("*.css")):
        css = path.read_text("utf-8")
        path.write_text(thin(css, known), "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Run when all pages are written and their formulas typeset."""
    app.connect("build-finished", _polish_all, priority=600)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
