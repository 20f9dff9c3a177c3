"""The book's symbols: the tables of the notation page, and the letters of single chapters.

``{notation} data`` shows a group of ``book/notation.yml``, whose symbols have one meaning in the
whole theory part. A chapter declares its other letters in a ``{symbols}`` block, with one line
``$A$, $B$: meaning`` each; ``{notation} chapters`` collects these blocks. A test compares the
formulas with both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# What the symbols of one row are, and what they stand for.
Row = tuple[str, str]

_LIST = Path("book", "notation.yml")
_BLOCK = re.compile(r"^`{3}\{symbols\}\n(.*?)^`{3}$", re.M | re.S)
_LINE = re.compile(r"^((?:\$[^$]+\$(?:, )?)+): (.+)$", re.M)
_CODE = re.compile(r"^(`{3,}|:{3,})\{code-cell\}.*?^\1\s*$", re.M | re.S)
_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$]+?)\$", re.S)
_WORDS = re.compile(
    r"\\(?:operatorname|mathrm|text)\*?\{[^}]*\}|\\(?:begin|end)\{[^}]*\}|\{glue:[^}]*\}`[^`]*`"
)
_FONT = re.compile(r"\\math(bb|bf|cal)\s*\{?(\w)\}?")
_NAMED = re.compile(r"(\\[A-Za-z]+|[A-Za-z])_\{?\\?(max|min|eff|perp|GN)\b\}?")
# A word below a letter that does not make it another symbol, such as in L_{cos}.
_LABEL = re.compile(r"_\{?(?!max|min|eff)[a-z]{2,}\}?")
_TOKEN = re.compile(r"@\w+|\\[A-Za-z]+|[A-Za-z]")
_ACCENT = re.compile(r"\\(hat|bar|tilde)\s*")
_GREEK = re.compile(
    r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|kappa|lambda|mu|nu|xi|pi"
    r"|(?:var)?rho|sigma|tau|(?:var)?phi|chi|psi|omega|ell|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma"
    r"|Phi|Psi|Omega)"
)
# Numbers of examples, queries and entries; T transposes, and F names a norm.
_INDICES = frozenset("ijlmqTF")


def letters(formula: str) -> set[str]:
    """The symbols in a formula, without indices and functions; ``\\sigma_{max}`` is one."""
    text = _FONT.sub(r" @\1\2 ", _LABEL.sub("", _WORDS.sub(" ", formula)))
    text = _NAMED.sub(lambda m: f" @{m[1].lstrip(chr(92))}_{m[2]} ", text)
    found = {token.lstrip("\\@") for token in _TOKEN.findall(text)
             if not token.startswith("\\") or _GREEK.fullmatch(token)}  # fmt: skip
    return found - _INDICES


def shared_symbols(root: Path) -> list[Row]:
    """The rows of the list."""
    groups = yaml.safe_load((root / _LIST).read_text("utf-8"))
    return [(row["symbol"], row["meaning"]) for rows in groups.values() for row in rows]


def own_symbols(source: str) -> list[Row]:
    """The rows of a chapter's ``{symbols}`` blocks."""
    return [(m[1], m[2]) for block in _BLOCK.findall(source) for m in _LINE.finditer(block)]


def _keys(symbols: str) -> list[str]:
    """What ``$\\hat x$, $x_i$`` names: accents and words below count, indices do not."""
    found = []
    for symbol in re.findall(r"\$([^$]+)\$", symbols):
        accent, plain = _ACCENT.match(symbol), _ACCENT.sub("", symbol)
        first = _NAMED.match(plain) or _FONT.match(plain) or _TOKEN.match(plain)
        if first and (names := letters(first[0])):
            found.append(f"{accent[1] if accent else ''} {names.pop()}".strip())
    return list(dict.fromkeys(found))


def clashes(rows: list[Row]) -> list[str]:
    """The symbols that two rows name, with both meanings."""
    meanings: dict[str, list[str]] = {}
    for symbols, meaning in rows:
        for key in _keys(symbols):
            meanings.setdefault(key, []).append(meaning)
    return [
        f"{key}: {' and '.join(map(repr, found))}"
        for key, found in meanings.items()
        if len(found) > 1
    ]


def undeclared(source: str, shared: list[Row]) -> list[str]:
    """The letters of a chapter's formulas that neither the list nor its own blocks explain."""
    rows = [*shared, *own_symbols(source)]
    known = {key.split()[-1] for symbols, _ in rows for key in _keys(symbols)}
    text = _CODE.sub("", _BLOCK.sub("", source))
    used = set().union(*(letters(m[1] or m[2]) for m in _MATH.finditer(text)))
    return sorted(used - known)


def _table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class _Parsed(SphinxDirective):
    def parsed(self, text: str) -> list[nodes.Node]:
        """The nodes of a text in the chapters' own language."""
        node = nodes.Element()
        self.state.nested_parse(StringList(text.splitlines(), self.env.docname), 0, node)
        return node.children


class Notation(_Parsed):
    """``{notation} GROUP`` or ``{notation} chapters``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One table."""
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / _LIST))
        if self.arguments[0] != "chapters":
            group = yaml.safe_load((root / _LIST).read_text("utf-8"))[self.arguments[0]]
            rows = [(row["symbol"], row["meaning"]) for row in group]
            return self.parsed(_table(rows, ("symbol", "meaning")))
        found = []
        for path in sorted((root / "book").glob("*/*.md")):
            own = own_symbols(path.read_text("utf-8"))
            if own:
                self.env.note_dependency(str(path))
            link = f"[](/{path.relative_to(root).as_posix()})"
            found += [(symbols, meaning, link) for symbols, meaning in own]
        return self.parsed(_table(found, ("symbol", "meaning", "chapter")))


class Symbols(_Parsed):
    """``{symbols}``: the letters that this chapter alone uses, folded."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """A folded table."""
        rows = own_symbols("```{symbols}\n" + "\n".join(self.content) + "\n```")
        if len(rows) != len([line for line in self.content if line.strip()]):
            raise self.error("symbols: each line is `$A$, $B$: meaning`")
        table = _table(rows, ("symbol", "meaning"))
        fence = ":" * 3
        return self.parsed(
            f"{fence}{{admonition}} Letters of this chapter\n:class: dropdown\n\n{table}\n{fence}"
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both directives."""
    app.add_directive("notation", Notation)
    app.add_directive("symbols", Symbols)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
