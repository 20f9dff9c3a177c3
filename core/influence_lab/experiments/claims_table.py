"""The claims ledger as HTML: one row per sentence of the paper, with its readings folded below.

Rows are grouped by figure with a subtotal each. Buttons filter by verdict; they work through
the style sheet, without a script. Colours repeat the words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import groupby

from influence_lab.experiments.claims import VERDICTS, Reading, Row

HEAD = ("The paper says", "Verdict", "Ours")
KINDS = {"fig": "Figure", "table": "Table", "eq": "Equation"}


def named(display: str) -> str:
    """``paper-fig-2`` in the paper's wording."""
    kind, _, number = display.removeprefix("paper-").partition("-")
    return f"{KINDS[kind]} {number}"


def counted(found: Sequence[Row]) -> str:
    """The number of rows with each verdict that occurs."""
    count = Counter(row.verdict for row in found)
    return ", ".join(f"{count[name]} {name}" for name in VERDICTS if count[name])


def table(found: Sequence[Row], base: str) -> str:
    """The ledger; ``base`` leads from the page that shows it to the book's folder."""
    count = Counter(row.verdict for row in found)
    buttons = "".join(
        f'<label><input type="radio" name="claims-verdict" value="{_slug(name)}"'
        f"{' checked' if name == 'all' else ''}> {name} ({number})</label>"
        for name, number in [("all", len(found)), *((v, count[v]) for v in VERDICTS)]
    )
    head = "".join(f"<th>{text}</th>" for text in HEAD)
    order = list(dict.fromkeys(row.claim.display for row in found))
    sorted_rows = sorted(found, key=lambda row: order.index(row.claim.display))
    body = "".join(
        _group(display, list(group), base)
        for display, group in groupby(sorted_rows, key=lambda row: row.claim.display)
    )
    return (
        f'<div class="claims"><fieldset class="claims-filter"><legend>Show</legend>{buttons}'
        f'</fieldset><table class="claims-ledger"><thead><tr>{head}</tr></thead>{body}</table>'
        "</div>"
    )


def _group(display: str, found: list[Row], base: str) -> str:
    title = f'<a href="{escape(_href(found, base))}">{named(display)}</a>'
    return (
        f'<tbody><tr class="group"><th scope="rowgroup" colspan="{len(HEAD)}">{title}: '
        f"{counted(found)}</th></tr>" + "".join(_row(row, base) for row in found) + "</tbody>"
    )


def _href(found: list[Row], base: str) -> str:
    links = [one.link for row in found for one in (*row.tests, *row.ours)]
    display = found[0].claim.display
    exact = [link for link in links if link.endswith(f"#{display}")]
    return base + (exact or links)[0]


def _row(row: Row, base: str) -> str:
    folded = ""
    if row.tests or row.ours:
        parts = [f"{len(row.tests)} test{'s' if len(row.tests) != 1 else ''}"]
        if row.ours:
            parts.append(f"{len(row.ours)} of ours")
        items = "".join(
            f"<li>{_reading(one, base, mark)}</li>"
            for mark, group in (("", row.tests), ("ours", row.ours))
            for one in group
        )
        folded = (
            f"<details><summary>{' and '.join(parts)}</summary>"
            f'<ul class="claim-readings">{items}</ul></details>'
        )
    claim = row.claim
    place = (
        claim.section
        if claim.section.startswith(tuple(KINDS.values()))
        else f"Section {claim.section}"
    )
    says = f'{escape(claim.says)}<br><small class="claim-section">{escape(place)}</small>'
    cells = (says, badge(row.verdict, row.why), f"{_short(row)}{folded}")
    return f'<tr class="claim {_slug(row.verdict)}" id="{claim.id}">' + "".join(
        f"<td>{cell}</td>" for cell in cells
    ) + "</tr>"  # fmt: skip


def _short(row: Row) -> str:
    """The deciding number, from the first deciding test that has one."""
    return next((f"<p>{_numbers(one)}</p>" for one in row.deciding if one.found), "")


def badge(verdict: str, why: str = "") -> str:
    """A verdict in colour and words."""
    return f'<span class="verdict {_slug(verdict)}">{verdict}</span>' + (
        f'<br><small class="claim-why">{escape(why)}</small>' if why else ""
    )


def _reading(one: Reading, base: str, mark: str) -> str:
    origin = ", ".join(text for text in (one.data, one.model, one.profile) if text)
    tag = '<span class="claim-ours">ours</span> ' if mark else ""
    return (
        f'{tag}<a href="{escape(base + one.link)}">{escape(one.words)}</a><br>'
        f"{_numbers(one)} · {badge(one.verdict, one.why)}"
        + (f'<br><small class="claim-origin">{escape(origin)}</small>' if origin else "")
    )


def _numbers(one: Reading) -> str:
    interval = f" [{one.interval}]" if one.interval else ""
    ours = f"{one.ours}{interval}" if one.ours else "–"
    return f"paper {escape(one.paper)}, ours {ours}"


def _slug(verdict: str) -> str:
    return verdict.replace(" ", "-")
