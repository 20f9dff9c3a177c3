from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from influence_lab.theory.ledger import VERDICTS, Below, CheckFailed, verdict

ROOT = Path(__file__).resolve().parents[3]
INVENTORY = yaml.safe_load((ROOT / "book" / "inventory.yml").read_text("utf-8"))["statements"]
LEDGER = ROOT / "_build" / "html" / "book" / "theory" / "ledger.html"


def test_a_verdict_shows_its_checks():
    row = verdict("paper-lemma-1", "holds", {"exact": True, "numbers": Below(1e-12, 1e-8)})
    assert repr(row).splitlines() == [
        "paper-lemma-1: holds",
        "  exact: yes",
        "  numbers: error below 1e-08",
    ]


@pytest.mark.parametrize(
    "outcome", [False, np.bool_(False), Below(1e-8, 1e-8), Below(float("nan"), 1e-8)]
)
def test_a_failed_check_stops_the_chapter(outcome):
    with pytest.raises(CheckFailed, match="paper-lemma-1: the check"):
        verdict("paper-lemma-1", "holds", {"fine": True, "the check": outcome})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("paper-lemma-1", "true", {"a": True}), {}),
        (("paper-lemma-1", "holds", {}), {}),
        (("paper-lemma-1", "holds", {"a": 1.0}), {}),
        (("paper-lemma-1", "holds", {"a": True}), {"what": "typed"}),
        (("beyond-a", "holds", {"a": True}), {}),
        (("paper-lemma-1", VERDICTS[1], {"a": True}), {}),
        (("paper-lemma-1", VERDICTS[2], {"a": True}), {}),
    ],
)
def test_an_incomplete_verdict_is_refused(arguments, words):
    with pytest.raises(ValueError, match=arguments[0]):
        verdict(*arguments, **words)


def test_no_row_of_the_ledger_is_typed():
    source = (ROOT / "book" / "theory" / "ledger.md").read_text("utf-8")
    assert "{statement-ledger}" in source
    assert not re.search(r"(paper|beyond)-[a-z]", source)


def _rows() -> dict[str, str]:
    """Statement id → text of its row, from the built page."""
    if not LEDGER.exists():
        pytest.fail("The site is not built: run make book", pytrace=False)
    page = LEDGER.read_text("utf-8")
    table = page[page.index("statement-ledger") : page.index("</table>")]
    rows = [r for r in table.split("<tr") if "#" in r and "<td" in r]
    return {re.search(r'href="[^"#]+#([\w-]+)"', row)[1]: row for row in rows}


def test_the_page_has_every_statement_and_the_extras():
    found = _rows()
    paper = [name for name in found if name.startswith("paper-")]
    assert paper == [entry["id"] for entry in INVENTORY]
    assert len(paper) == 21
    assert len([name for name in found if name.startswith("beyond-")]) >= 10
    for name, row in found.items():
        assert any(word in row for word in VERDICTS), name


def test_every_statement_is_one_proof_element():
    counted: dict[str, list[str]] = {name: [] for name in _rows()}
    for page in sorted(LEDGER.parents[2].rglob("*.html")):
        for element in re.findall(r"<[^>]*\bid=\"(?:paper|beyond)-[^>]*>", page.read_text("utf-8")):
            name = re.search(r'\bid="([\w-]+)"', element)[1]
            if name in counted:
                counted[name].append(element)
    assert {name: len(found) for name, found in counted.items()} == dict.fromkeys(counted, 1)
    assert all('class="proof ' in found[0] for found in counted.values())


def test_the_extension_names_what_is_missing(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    sys.modules.pop("ledger", None)
    import ledger

    class Environment:
        srcdir, proof_list, config = str(ROOT), {}, None

    class Configuration:
        ledger_inventory = "book/inventory.yml"

    Environment.config = Configuration
    record = {"statement": "paper-lemma-1", "what": "", "verdict": "holds"}
    warnings: list[str] = []
    monkeypatch.setattr(ledger, "records", lambda env: [("a", record), ("b", record)])
    monkeypatch.setattr(ledger.logger, "warning", lambda text: warnings.append(text))
    ledger.check(Environment, Environment)
    assert "ledger: paper-lemma-1 has 2 verdicts, not one" in warnings
    assert "ledger: paper-lemma-2 has 0 verdicts, not one" in warnings
    assert "ledger: paper-lemma-1 has a verdict but no anchor in a" in warnings
