r"""Typeset the formulas when the book is built, so that no page loads MathJax.

Sphinx leaves formulas as ``\(...\)`` and ``\[...\]`` for a script of the page. Once all pages are
written, ``formulas.js`` typesets each of them, with the MathJax of ``sphinx-mathjax-offline`` and
the Node of Playwright. One style sheet, ``_static/formulas.css``, has the glyphs that the book uses
and the fonts themselves, cut down to these glyphs: a browser may refuse font files to a page from
disk, and the whole fonts would weigh more than all else that a page loads.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from html import unescape
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fontTools import subset
from fontTools.ttLib import TTFont
from playwright._impl._driver import compute_driver_executable
from sphinx.errors import ExtensionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sphinx.application import Sphinx

SHEET = "formulas.css"
_INLINE = re.compile(
    r'(<span class="math notranslate nohighlight"[^>]*>)\\\((.*?)\\\)(</span>)([,.;:?!)]*)', re.S
)
_BLOCK = re.compile(
    r'(<div class="math notranslate nohighlight"[^>]*>\s*(?:<span class="eqno">.*?</span>)?)'
    r"(\\\[.*?\\\]|\\begin\{.*?)(</div>)",
    re.S,
)
_SCRIPTS = re.compile(
    r'\s*<script>window\.MathJax = .*?</script>|\s*<script [^>]*src="[^"]*mathjax[^>]*></script>'
)
_FONT = re.compile(
    r'(?P<face>@font-face[^}]*font-family: MJX(?P<family>[\w-]+);[^}]*url\(")'
    r'\./(?P<file>[\w-]+\.woff)(?P<rest>"\)[^}]*\})'
)
# A glyph is the content of a rule, as itself or as a number; a class of the rule names its font.
_GLYPH = re.compile(r'(?P<asked>[^{}]+)\{[^{}]*?content: "(?P<content>(?:\\.|[^"\\])*)"')
_SIGN = re.compile(r"\\([0-9a-fA-F]+) ?|\\?(.)", re.S)
_PLAIN = re.compile(r"TEX(-S\d)?")
# What the sheet asks for besides the classes of single glyphs: text, and parts of large braces.
_ALWAYS = {"ZERO", "TEX", "TEX-S1", "TEX-S4", "TEX-A"}


class Formula(NamedTuple):
    """TeX, and whether it stands in a line of its own."""

    tex: str
    display: bool


def mathjax() -> Path:
    """The folder of the installed MathJax."""
    spec = find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ExtensionError("formulas: sphinx-mathjax-offline is not installed; run make install")
    return Path(spec.origin).parent / "static" / "mathjax"


def formulas(html: str) -> list[Formula]:
    """What a page asks to be typeset, in no order."""
    found = [Formula(unescape(m[2]).strip(), False) for m in _INLINE.finditer(html)]
    return found + [Formula(_bare(m[2]), True) for m in _BLOCK.finditer(html)]


def _bare(block: str) -> str:
    return unescape(block).strip().removeprefix(r"\[").removesuffix(r"\]").strip()


def typeset(wanted: Sequence[Formula]) -> tuple[dict[Formula, str], str]:
    """The markup of each formula, and the style sheet that they share.

    Raises:
        ExtensionError: a formula that MathJax cannot read, with its TeX.
    """
    node, _ = compute_driver_executable()
    done = subprocess.run(
        [node, str(Path(__file__).with_suffix(".js")), str(mathjax())],
        input=json.dumps([formula._asdict() for formula in wanted]),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ExtensionError(f"formulas: {done.stderr.strip() or 'Node stopped'}")
    found = json.loads(done.stdout)
    used = _ALWAYS.union(*(re.findall(r"\bTEX-\w+", html) for html in found["html"]))
    return dict(zip(wanted, found["html"], strict=True)), _with_fonts(found["css"], used)


def _with_fonts(css: str, used: set[str]) -> str:
    folder = mathjax() / "output" / "chtml" / "fonts" / "woff-v2"
    signs = glyphs(css)

    def inline(match: re.Match[str]) -> str:
        family = match["family"]
        if family not in used:
            return ""
        # Signs of no named font are the upright ones, and the parts of what stretches.
        plain = signs.get("", set()) if _PLAIN.fullmatch(family) else set()
        font = _cut(folder / match["file"], signs.get(family, set()) | plain)
        data = base64.b64encode(font).decode()
        return f"{match['face']}data:font/woff;base64,{data}{match['rest']}"

    return _FONT.sub(inline, css)


def glyphs(css: str) -> dict[str, set[int]]:
    """The signs that a style sheet sets as contents, by font; those of no named one are at ""."""
    found: dict[str, set[int]] = {}
    for rule in _GLYPH.finditer(css):
        signs = {
            int(code, 16) if code else ord(sign) for code, sign in _SIGN.findall(rule["content"])
        }
        for family in re.findall(r"\.(TEX-\w+)", rule["asked"]) or [""]:
            found.setdefault(family, set()).update(signs)
    return found


def _cut(path: Path, signs: set[int]) -> bytes:
    """A font with the glyphs of these signs alone, drawn and placed as before."""
    font = TTFont(path)
    if not signs & set(font.getBestCmap()):
        # A browser refuses an empty font; the one without extent is there for its line's height.
        return path.read_bytes()
    options = subset.Options(hinting=True, notdef_outline=True, layout_features=["*"])
    options.drop_tables += ["FFTM"]
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=signs)
    cutter.subset(font)
    font.flavor = "woff"
    written = BytesIO()
    font.save(written)
    return written.getvalue()


def place(html: str, markup: dict[Formula, str]) -> str:
    """The page with its formulas typeset, and without MathJax."""
    html = _INLINE.sub(lambda m: _in_line(m, markup[Formula(unescape(m[2]).strip(), False)]), html)
    html = _BLOCK.sub(lambda m: m[1] + markup[Formula(_bare(m[2]), True)] + m[3], html)
    return _SCRIPTS.sub("", html)


def _in_line(match: re.Match[str], typeset: str) -> str:
    """A formula and the sign that follows it, which would else begin the next line."""
    shown = match[1] + typeset + match[3] + match[4]
    # What is wide may itself need several lines.
    keep = match[4] and "--width" not in typeset
    return f'<span class="unbroken">{shown}</span>' if keep else shown


def _typeset_all(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    pages = {path: path.read_text("utf-8") for path in sorted(Path(app.outdir).rglob("*.html"))}
    # Pages that were not written again have their formulas typeset; their glyphs are still needed.
    memory = Path(app.doctreedir) / "formulas.json"
    known = json.loads(memory.read_text("utf-8")) if memory.exists() else []
    wanted = {Formula(*one) for one in known}.union(*map(formulas, pages.values()))
    markup, css = typeset(sorted(wanted))
    for path, html in pages.items():
        placed = place(html, markup)
        if placed != html:
            path.write_text(placed, "utf-8")
    (Path(app.outdir) / "_static" / SHEET).write_text(css, "utf-8")
    memory.write_text(json.dumps(sorted(wanted)), "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Typeset when all pages are written; the sheet is linked from every page."""
    app.add_css_file(SHEET)
    app.connect("build-finished", _typeset_all)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
