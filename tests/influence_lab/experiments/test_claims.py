"""The ledger of empirical claims: verdicts follow from intervals, rows from sentences."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from scipy.stats import norm

from influence_lab.experiments import (
    claims,
    claims_table,
    concept,
    distributions,
    embedding,
    families,
    noise,
    removal_effects,
    stability,
)
from influence_lab.experiments.catalogue import collect
from influence_lab.experiments.catalogue import rows as rows_of
from influence_lab.experiments.claims import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTED,
    PUBLISHED,
    REPRODUCED,
    VERDICTS,
    Claim,
    Row,
    above,
    agrees,
    below,
    counts,
    reading,
    together,
    verdict,
    within,
)
from influence_lab.measures.agreement import Estimate, around, bootstrap
from influence_lab.records import results
from influence_ssl import InfluenceError

HIGH = Estimate(0.97, 0.965, 0.975)


def at(low, high):
    return Estimate((low + high) / 2, low, high)


def made(found=HIGH, **how):
    return reading("a", "words", "> 0.96", found, above(0.96), "x.html#y", **how)


@pytest.mark.parametrize(
    ("low", "high", "one", "two"),
    [
        (0.9601, 0.98, REPRODUCED, REPRODUCED),
        # An interval that begins on the bound contains it.
        (0.96, 0.98, INCONCLUSIVE, INCONCLUSIVE),
        (0.95, 0.97, INCONCLUSIVE, INCONCLUSIVE),
        (0.94, 0.96, INCONCLUSIVE, INCONCLUSIVE),
        (0.94, 0.9599, INCONCLUSIVE, CONTRADICTED),
    ],
)
def test_a_one_sided_claim_at_its_edges(low, high, one, two):
    assert verdict([at(low, high)], above(0.96)) == one
    assert verdict([at(low, high)] * 2, above(0.96)) == two
    assert verdict([at(-high, -low)] * 2, below(-0.96)) == two
    # One training of an encoder as large as the paper's is enough, or two behind one number.
    assert verdict([at(low, high)], above(0.96), smaller=False) == two
    assert verdict([at(low, high)], above(0.96), encoders=2) == two


def test_no_verdict_flips_with_the_seed():
    inside, outside, across = at(0.97, 0.98), at(0.90, 0.92), at(0.95, 0.97)
    assert verdict([inside, outside], above(0.96)) == INCONCLUSIVE
    assert verdict([inside, across], above(0.96)) == INCONCLUSIVE
    assert verdict([outside, across], above(0.96)) == INCONCLUSIVE
    # Outside on both sides of a region is not one contradiction: the interval over both covers it.
    assert verdict([at(-0.5, -0.4), at(0.4, 0.5)], within(0.1)) == INCONCLUSIVE
    assert verdict([at(0.3, 0.4), at(0.4, 0.5)], within(0.1)) == CONTRADICTED
    assert verdict([at(-0.09, 0.09)], within(0.1)) == REPRODUCED
    assert verdict([at(-0.09, 0.1)], within(0.1)) == INCONCLUSIVE


@pytest.mark.parametrize("found", [[], [HIGH], [HIGH, HIGH], [at(0.1, 0.2)] * 2])
def test_a_stand_in_is_never_tested(found):
    assert verdict(found, above(0.96), stand_in=True) == NOT_TESTED
    assert verdict(found, above(0.96), stand_in=True, cannot="too short") == NOT_TESTED


def test_nothing_recorded_is_not_tested_and_no_interval_is_inconclusive():
    assert verdict([], above(0.96)) == NOT_TESTED
    nothing = float("nan")
    assert verdict([Estimate(0.99, nothing, nothing)], above(0.96)) == INCONCLUSIVE
    assert verdict([HIGH, Estimate(0.1, nothing, nothing)], above(0.96)) == INCONCLUSIVE


def test_a_design_that_cannot_tell_is_inconclusive_at_most():
    for found in (HIGH, at(0.1, 0.2), at(0.9, 0.99)):
        assert verdict([found] * 2, above(0.96), cannot="too short") == INCONCLUSIVE


@pytest.mark.parametrize(
    ("printed", "low", "high", "expected"),
    [("1.27", 1.2, 1.264, CONTRADICTED), ("1.27", 1.2, 1.2651, REPRODUCED),
     ("1.27", 1.2749, 1.3, REPRODUCED), ("1.27", 1.276, 1.3, CONTRADICTED),
     ("0.9745", 0.97, 0.9744, CONTRADICTED), ("8", 7.5, 7.6, REPRODUCED),
     # Half-widths of 0.0905 and 0.0895 with 0.09 as the widest that tells.
     ("1.27", 1.18, 1.361, INCONCLUSIVE), ("1.27", 1.18, 1.359, REPRODUCED)],
)  # fmt: skip
def test_a_printed_number_stands_for_what_rounds_to_it(printed, low, high, expected):
    assert verdict([at(low, high)] * 2, agrees(printed, 0.09)) == expected


def test_a_count_is_reproduced_by_the_same_count():
    two, none, five = Estimate(0.4, 0.12, 0.77), Estimate(0.0, 0.0, 0.43), Estimate(1.0, 0.57, 1.0)
    assert verdict([two, two], counts(2, 5)) == REPRODUCED
    assert verdict([two, none], counts(2, 5)) == INCONCLUSIVE
    assert verdict([none, none], counts(2, 5)) == INCONCLUSIVE
    assert verdict([none, none], counts(5, 5)) == CONTRADICTED
    assert verdict([none], counts(5, 5)) == INCONCLUSIVE
    assert verdict([five], counts(5, 5)) == REPRODUCED


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([], NOT_TESTED),
        ([REPRODUCED, REPRODUCED], REPRODUCED),
        ([REPRODUCED, NOT_TESTED], NOT_TESTED),
        ([REPRODUCED, INCONCLUSIVE, NOT_TESTED], INCONCLUSIVE),
        ([REPRODUCED, INCONCLUSIVE, NOT_TESTED, CONTRADICTED], CONTRADICTED),
    ],
)
def test_a_sentence_asserts_all_its_tests(parts, whole):
    assert together(parts) == together(parts[::-1]) == whole


def test_the_power_is_that_of_a_normal_test():
    """Half-width 1.96 s: with the true distance at what is stated, 80 % of intervals clear it."""
    found = around(0.0, 0.01)
    shift = claims.detectable([found])
    assert shift == pytest.approx(0.01 * (norm.ppf(0.975) + norm.ppf(0.8)))
    draws = np.random.default_rng(0).normal(shift, 0.01, 20_000)
    assert np.mean(draws - 1.96 * 0.01 > 0) == pytest.approx(0.8, abs=0.01)


def test_no_row_is_worded_stronger_than_its_rule():
    row = made()
    with pytest.raises(AttributeError):
        row.verdict = REPRODUCED
    with pytest.raises(TypeError, match="verdict"):
        claims.Reading(**vars(row), verdict=REPRODUCED)
    assert (row.ours, row.interval) == ("0.970", "0.965 to 0.975")
    low = made([at(0.8, 0.9), at(0.85, 0.95)], profile="cpu")
    assert (low.verdict, low.why) == (CONTRADICTED, "for these encoders")
    assert (low.ours, low.interval) == ("0.850 and 0.900", "0.800 to 0.950")
    assert made(at(0.8, 0.9), profile="paper").why == ""
    assert made(at(0.8, 0.9), profile="paper").verdict == CONTRADICTED
    assert "one training" in made(at(0.8, 0.9), profile="cpu").why
    assert made(at(0.95, 0.97)).why == "an effect of 0.014 would be seen 4 times in 5"
    assert made(HIGH, stand_in=True).why == "measured on a stand-in"
    assert made(None).why == "nothing recorded"
    assert made(HIGH, cannot="too short").why == "too short"
    assert made(None, data="x", profile="cpu").profile == ""


def test_a_sentence_shows_what_decides_it():
    good, bad = made(), made([at(0.1, 0.2)] * 2, profile="cpu")
    row = Row(Claim("claim-x", "4", "paper-fig-2", "says"), (good, bad), (made(None),))
    assert (row.verdict, row.deciding, row.why) == (CONTRADICTED, (bad,), "for these encoders")
    # Ours decide nothing.
    assert Row(row.claim, (good,), (bad,)).verdict == REPRODUCED
    empty = Row(Claim("claim-y", "4", "paper-fig-2", "says", needs="CIFAR-100"), (), (bad,))
    assert (empty.verdict, empty.why) == (NOT_TESTED, "needs CIFAR-100")


def test_readings_and_sentences_belong_together():
    listed = [Claim("claim-x", "4", "paper-fig-2", "says", tests=("a*",))]
    assert claims.match(listed, [made()])[0].tests == (made(),)
    with pytest.raises(InfluenceError, match="claim-x: no reading is called a"):
        claims.match(listed, [])
    other = reading("b", "words", "1", None, above(0), "x#y")
    with pytest.raises(InfluenceError, match="readings of no sentence: b"):
        claims.match(listed, [made(), other])


def test_an_inventory_that_is_not_there_says_so(tmp_path):
    with pytest.raises(InfluenceError, match=r"inventory\.yml: no inventory of the paper"):
        claims.sentences(tmp_path / "inventory.yml")


@pytest.fixture(scope="module")
def readings():
    return collect()


@pytest.fixture(scope="module")
def rows():
    return rows_of()


def test_every_experiment_has_its_readings(readings):
    ids = [row.id for row in readings]
    assert len(ids) == len(set(ids))
    for module in (concept, stability, embedding, distributions, noise, families, removal_effects):
        assert {row.id for row in module.claims()} <= set(ids)


def test_every_sentence_has_one_row(rows):
    inventory = yaml.safe_load((results.results_root().parent / "inventory.yml").read_text("utf-8"))
    ids = [row.claim.id for row in rows]
    assert ids == [entry["id"] for entry in inventory["claims"]]
    assert len(ids) == len(set(ids))
    displays = {display["id"] for display in inventory["displays"]}
    stated = {statement["id"] for statement in inventory["statements"]}
    assert {row.claim.display for row in rows} <= displays | stated
    # What nothing tests says what a test would take.
    assert all(row.tests or row.claim.needs for row in rows)
    for display in displays - {"paper-table-1", "paper-table-2", "paper-table-3"}:
        assert any(row.claim.display == display for row in rows), display


MEMORISATION = {"fig-memorisation", "fig-memorisation-photographs"}


def test_links_lead_to_the_anchors_of_chapters(readings):
    book = results.results_root().parent
    displays = yaml.safe_load((book / "inventory.yml").read_text("utf-8"))["displays"]
    for row in readings:
        page, anchor = row.link.split("#")
        assert f"name: {anchor}" in (book / page).with_suffix(".md").read_text("utf-8")
        assert anchor in {*MEMORISATION, *(display["id"] for display in displays)}


def test_without_results_nothing_is_claimed(tmp_path):
    empty = collect(tmp_path)
    assert [row.id for row in empty] == [row.id for row in collect()]
    empty = [row for row in empty if row.profile != PUBLISHED]
    assert {row.verdict for row in empty} == {NOT_TESTED}
    assert {row.ours for row in empty} == {""}


def test_scenes_are_a_stand_in(tmp_path):
    """The tiny records have numbers, and no verdict on the paper's data."""
    shutil.copytree(results.results_root() / "tiny", tmp_path / "tiny")
    rows = [row for row in collect(tmp_path) if row.ours and row.profile != PUBLISHED]
    assert len(rows) > 20
    assert {row.verdict for row in rows} == {NOT_TESTED}
    assert {row.profile for row in rows} == {"tiny"}


def test_real_records_have_verdicts(tmp_path):
    """The same numbers, said to come from real data."""
    shutil.copytree(results.results_root() / "tiny", tmp_path / "cpu")
    verdicts = {row.id: row.verdict for row in collect(tmp_path)}
    record = json.loads((tmp_path / "cpu" / "noise.json").read_text())
    shifts = [low for _, low, _ in record["shift"].values()]
    assert verdicts["fig-10-shift"] == (REPRODUCED if min(shifts) > 0 else INCONCLUSIVE)
    assert verdicts["fig-2-simclr-training"] == CONTRADICTED
    assert verdicts["fig-2-cifar100"] == NOT_TESTED


def test_contradictions_of_ours_rest_on_two_trainings(readings):
    for one in readings:
        if one.verdict == CONTRADICTED and one.profile != PUBLISHED:
            assert max(len(one.found), one.encoders or 0) > 1, one.id
            assert one.why == "for these encoders"


def test_the_published_accuracies_against_the_order_of_the_means():
    """By hand: 92.58 > 92.10 against 8.47 < 8.71, and the binomial errors of 10,000 images."""
    found = distributions.least_step("CIFAR-10")
    error = np.sqrt((0.9210 * 0.0790 + 0.9258 * 0.0742) / 10_000)
    assert found == pytest.approx(
        (-0.0048, -0.0048 - 1.96 * error, -0.0048 + 1.96 * error), rel=1e-3
    )
    # 70.90 > 70.46 > 65.78.
    assert distributions.least_step("CIFAR-100").value == pytest.approx(0.0044)
    verdicts = {row.id: row.verdict for row in distributions.claims()}
    assert verdicts["fig-9-published-cifar-10"] == CONTRADICTED
    assert verdicts["fig-9-published-cifar-100"] == REPRODUCED
    assert verdicts["fig-9-published-cifar-10-sampled"] == INCONCLUSIVE
    assert verdicts["fig-9-published-cifar-100-sampled"] == INCONCLUSIVE


def test_a_level_above_its_ceiling_cannot_be_tested():
    """Rank 16: no layer adds more than 16 x 16 to the mean; ln 5,120 = 8.54 < 8.71."""
    found = {row.id: row for row in distributions.claims()}
    row = found["fig-9-barlow-mean"]
    assert row.verdict == INCONCLUSIVE
    assert row.cannot.startswith("no mean can exceed ln 5,120 = 8.54")
    assert found["fig-9-barlow-std"].cannot == ""


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


def test_each_larger_deviation_is_set_against_the_next_smaller(tmp_path):
    """By hand: ln |I| gains at least 0.3, within 0.1 times the root of 2; |I| loses 2 once."""
    one, plain = [1.0, 2.0, 2.3, 3.0], [10.0, 20.0, 30.0, 28.0]
    cells = {
        f"{mu} {sigma}": {
            "mean ln|I|": [one[k], one[k] - 0.1, one[k] + 0.1],
            "mean |I|": [plain[k]] * 3, "same": [0.95] * 3, "other": [0.95] * 3,
            "same-pearson": [0.85] * 3, "other-pearson": [0.95] * 3,
        }
        for mu in noise.MEANS for k, sigma in enumerate(noise.DEVIATIONS)
    }  # fmt: skip
    steps = noise.steps(cells, "mean ln|I|")
    assert len(steps) == len(noise.MEANS) * 3
    least = min(steps, key=lambda found: found.value)
    assert least.value == pytest.approx(0.3)
    assert least.low == pytest.approx(0.3 - np.hypot(0.1, 0.1))
    record = {"cells": cells, "provenance": {"data": "some"}}
    results.save_json(tmp_path / "cpu" / "noise.json", record)
    rows = {row.id: row for row in noise.claims(tmp_path)}
    assert rows["fig-10-average"].verdict == REPRODUCED
    assert rows["fig-10-average-plain"].found[0].value == pytest.approx(-2)
    assert rows["fig-10-average-plain"].verdict == INCONCLUSIVE
    assert {draw: rows[f"fig-11-{draw}"].verdict for draw in ("same", "other")} == {
        "same": REPRODUCED, "other": REPRODUCED,
    }  # fmt: skip
    assert rows["fig-11-same-pearson"].verdict == INCONCLUSIVE  # below 0.9, with one encoder
    assert rows["fig-11-other-pearson"].verdict == REPRODUCED


def test_the_status_of_a_display_is_that_of_its_data():
    test, other = made(), made(stand_in=True)
    sentence = Claim("claim-x", "4", "paper-fig-2", "says")
    lacking = Claim("claim-y", "4", "paper-fig-2", "says", needs="CIFAR-100")
    real = Row(sentence, (test,), ())
    assert claims.status("paper-fig-2", [real]) == "real data"
    assert (
        claims.status("paper-fig-2", [real, Row(lacking, (made(None),), ())])
        == "partial; missing: CIFAR-100"
    )
    assert (
        claims.status("paper-fig-2", [Row(lacking, (other,), ())]) == "stand-in; missing: CIFAR-100"
    )
    # Too wide an interval leaves as much missing as no data; a verdict leaves nothing.
    open_, settled = (Row(lacking, (made(found),), ()) for found in (at(0.95, 0.97), HIGH))
    assert claims.status("paper-fig-2", [open_]) == "partial; missing: CIFAR-100"
    assert claims.status("paper-fig-2", [settled]) == "real data"
    assert claims.status("paper-fig-2", [Row(sentence, (made(None),), ())]) == "not recorded yet"
    assert claims.status("paper-table-1", [real]) == "no data needed"


def test_the_table_holds_every_row_and_escapes(rows):
    odd = Row(Claim("claim-z", "9", "paper-fig-2", "<b> & c"), (made(data="<i>"),), ())
    page = BeautifulSoup(claims_table.table([*rows, odd], "../"), "html.parser")
    found = page.select("tr.claim")
    assert sorted(tr["id"] for tr in found) == sorted([*(r.claim.id for r in rows), "claim-z"])
    assert page.find("b") is page.find("i") is None
    links = [a["href"] for a in page.select("ul a")]
    assert sorted(links) == sorted(
        "../" + one.link for row in [*rows, odd] for one in (*row.tests, *row.ours)
    )
    for row, tr in zip([*rows, odd], (page.find(id=r.claim.id) for r in [*rows, odd]), strict=True):
        word = tr.select("td")[1].select_one(".verdict").text
        assert word == row.verdict
        assert row.verdict.replace(" ", "-") in tr["class"]
        assert len(tr.select(".claim-ours")) == len(row.ours)
    buttons = page.select("input[type=radio]")
    assert [b["value"] for b in buttons] == ["all", *(v.replace(" ", "-") for v in VERDICTS)]
    places = {tr["id"]: tr.select_one(".claim-section").text for tr in found}
    assert places["claim-z"] == "Section 9"
    assert all(places[r.claim.id].endswith(r.claim.section) for r in rows)
    assert not any(re.match("Section (Figure|Table)", place) for place in places.values())
    # Subtotals add up.
    totals = [
        int(n) for th in page.select("tr.group th") for n in re.findall(r"(\d+) [a-z]", th.text)
    ]
    assert sum(totals) == len(rows) + 1
    assert claims.tally([odd]) == (
        "1 reproduced, 0 contradicted, 0 inconclusive, 0 not tested here"
    )


def test_a_row_shows_the_number_of_the_first_test_that_has_one():
    listed = Claim("claim-x", "4", "paper-eq-6", "says", needs="CIFAR-100")
    row = Row(listed, (made(None), made(stand_in=True)), ())
    page = BeautifulSoup(claims_table.table([row], ""), "html.parser")
    assert page.select_one("tr.claim p").text == "paper > 0.96, ours 0.970 [0.965 to 0.975]"
    assert page.select_one("tr.group").text.startswith("Equation 6: 1 not tested here")


def test_a_line_of_a_table_holds_both_numbers_and_the_verdict_with_its_reason():
    gap = reading("b", "words", "> 0", Estimate(0.002, 0.0003, 0.0034), above(0.0), "x.html#y")
    line, nothing, small = claims.lines([made(), made(None), gap])
    assert (line["paper"], line["ours"]) == ("> 0.96", "0.970 [0.965 to 0.975]")
    assert line["verdict"] == "reproduced"
    assert (nothing["ours"], nothing["verdict"]) == ("–", "not tested here (nothing recorded)")
    # An interval that lies above 0 is not shown as one that begins at 0.
    assert small["ours"] == "0.0020 [0.0003 to 0.0034]"
