"""The ledger of empirical claims: verdicts follow from intervals, rows from experiments."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup

from influence_lab import claims, results
from influence_lab.agreement import Estimate, bootstrap
from influence_lab.claims import NOT_REPRODUCED, NOT_TESTED, REPRODUCED, above, agrees, claim
from influence_lab.experiments import (
    concept,
    distributions,
    embedding,
    families,
    noise,
    removal,
    stability,
)

# Rows that hold the paper's numbers against others' and need no record.
PUBLISHED = "published numbers"
HIGH = Estimate(0.97, 0.965, 0.975)


def made(found, **how):
    return claim("a", "words", "> 0.96", found, above(0.96), "x.html#y", **how)


def test_a_verdict_is_what_the_interval_says():
    assert made(HIGH).verdict == REPRODUCED
    assert made(Estimate(0.97, 0.955, 0.985)).verdict == NOT_REPRODUCED
    assert made(None).verdict == NOT_TESTED
    assert made(HIGH, stand_in=True).verdict == NOT_TESTED
    assert made(HIGH, stand_in=True).ours == "0.970"
    assert (made(HIGH).ours, made(HIGH).interval) == ("0.970", "0.965 to 0.975")


@pytest.mark.parametrize(
    ("printed", "low", "high", "expected"),
    [("1.27", 1.2, 1.264, False), ("1.27", 1.2, 1.2651, True), ("1.27", 1.2749, 1.3, True),
     ("1.27", 1.276, 1.3, False), ("0.9745", 0.97, 0.9744, False), ("8", 7.0, 7.6, True)],
)  # fmt: skip
def test_a_printed_number_stands_for_what_rounds_to_it(printed, low, high, expected):
    assert agrees(printed)(Estimate((low + high) / 2, low, high)) is expected


def test_a_claim_without_its_interval_is_refused():
    row = made(HIGH)
    with pytest.raises(ValueError, match="needs a number and its interval"):
        claims.Claim(**{**vars(row), "interval": ""})
    with pytest.raises(ValueError, match="is not one of"):
        claims.Claim(**{**vars(row), "verdict": "true"})


def test_the_weakest_holds_the_others():
    rows = [Estimate(0.5, 0.1, 0.9), Estimate(0.4, 0.2, 0.6)]
    assert claims.weakest(rows) is rows[0]


@pytest.fixture(scope="module")
def rows():
    return claims.collect()


def test_every_experiment_has_its_rows(rows):
    ids = [row.id for row in rows]
    assert len(ids) == len(set(ids))
    for module in (concept, stability, embedding, distributions, noise, families, removal):
        assert {row.id for row in module.claims()} <= set(ids)
    for display in ("fig-1", "fig-2", "fig-3", "fig-6", "fig-9", "fig-10", "fig-11", "table-4"):
        assert any(re.match(rf"{display}-", name) for name in ids)


def test_links_lead_to_the_anchors_of_chapters(rows):
    book = results.results_root().parent
    displays = yaml.safe_load((book / "inventory.yml").read_text("utf-8"))["displays"]
    for row in rows:
        page, anchor = row.link.split("#")
        assert f"name: {anchor}" in (book / page).with_suffix(".md").read_text("utf-8") or (
            f":name: {anchor}" in (book / page).with_suffix(".md").read_text("utf-8")
        )
        assert anchor in {display["id"] for display in displays}


def test_without_results_nothing_is_claimed(tmp_path):
    empty = claims.collect(tmp_path)
    assert [row.id for row in empty] == [row.id for row in claims.collect()]
    empty = [row for row in empty if row.profile != PUBLISHED]
    assert {row.verdict for row in empty} == {NOT_TESTED}
    assert {row.ours for row in empty} == {""}


def test_scenes_are_a_stand_in(tmp_path):
    """The tiny records have numbers, and no verdict on the paper's data."""
    shutil.copytree(results.results_root() / "tiny", tmp_path / "tiny")
    rows = [row for row in claims.collect(tmp_path) if row.ours and row.profile != PUBLISHED]
    assert len(rows) > 20
    assert {row.verdict for row in rows} == {NOT_TESTED}
    assert {row.profile for row in rows} == {"tiny"}


def test_real_records_have_verdicts(tmp_path):
    """The same numbers, said to come from real data."""
    shutil.copytree(results.results_root() / "tiny", tmp_path / "cpu")
    verdicts = {row.id: row.verdict for row in claims.collect(tmp_path)}
    record = json.loads((tmp_path / "cpu" / "noise.json").read_text())
    shifts = [low for _, low, _ in record["shift"].values()]
    assert verdicts["fig-10-shift"] == (REPRODUCED if min(shifts) > 0 else NOT_REPRODUCED)
    assert verdicts["fig-2-simclr-training"] == NOT_REPRODUCED
    assert verdicts["fig-2-cifar100"] == NOT_TESTED


def test_the_published_accuracies_have_not_the_order_of_the_means():
    """By hand: 92.58 > 92.10 against 8.47 < 8.71, and the binomial errors of 10,000 images."""
    found = distributions.least_step("CIFAR-10")
    error = np.sqrt((0.9210 * 0.0790 + 0.9258 * 0.0742) / 10_000)
    assert found == pytest.approx(
        (-0.0048, -0.0048 - 1.96 * error, -0.0048 + 1.96 * error), rel=1e-3
    )
    assert distributions.least_step("CIFAR-100").value == pytest.approx(0.0044)
    verdicts = {row.id: row.verdict for row in distributions.claims()}
    assert verdicts["fig-9-published-cifar-10"] == NOT_REPRODUCED
    assert verdicts["fig-9-published-cifar-100"] == NOT_REPRODUCED


def test_moments_have_the_intervals_of_the_bootstrap():
    magnitude = np.exp(np.random.default_rng(0).gamma(2.0, 1.0, 3000))
    logs = np.log(magnitude)
    found = distributions.moments(magnitude)

    def deviation(weights, v):
        mean = weights @ v / weights.sum(1)
        return np.sqrt(weights @ v**2 / weights.sum(1) - mean**2)

    expected = bootstrap(deviation, logs, n=3000)
    assert tuple(found["std"]) == pytest.approx(tuple(expected), abs=0.01)
    expected = bootstrap(lambda weights, v: weights @ v / weights.sum(1), logs, n=3000)
    assert tuple(found["mean"]) == pytest.approx(tuple(expected), abs=0.01)


def test_the_table_holds_every_row_and_escapes(rows):
    odd = made(HIGH, data="<b> & c")
    page = BeautifulSoup(claims.table([*rows, odd], "../"), "html.parser")
    assert len(page.select("tbody tr")) == len(rows) + 1
    assert page.find("b") is None
    assert [a["href"] for a in page("a")] == ["../" + row.link for row in [*rows, odd]]
    assert claims.tally([odd]) == "1 reproduced, 0 not reproduced, 0 not tested here"
    assert "paper > 0.96; ours 0.970 [0.965 to 0.975]: reproduced" in claims.report([odd])
