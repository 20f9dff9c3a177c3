"""What removal did: intervals against SciPy, pairing by seed, verdicts by their rule."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

from influence_lab.experiments import removal_effects as effects
from influence_lab.experiments.claims import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTED,
    REPRODUCED,
)
from influence_lab.experiments.distributions import LABELS
from influence_lab.experiments.removal import ORDERS
from influence_lab.records import results
from influence_ssl import InfluenceError

SEEDS, AMOUNTS = (0, 42, 123), (10, 40)


def invented(effect, spread=0.001, methods=tuple(LABELS), profile="cpu", seeds=SEEDS):
    """A record with accuracy 0.6 + seed's own + effect(method, order, amount) + noise."""
    rng = np.random.default_rng(0)
    own = {seed: rng.normal(0, 0.05) for seed in SEEDS}
    cells = [("none", 0), *((order, k) for k in AMOUNTS for order in ORDERS)]
    outcomes = []
    for method in methods:
        for seed in seeds:
            for order, amount in cells:
                share = 0.6 + own[seed] + effect(method, order, amount) + rng.normal(0, spread)
                outcome = {"method": method, "order": order, "amount": amount, "seed": seed}
                outcome |= {"knn": share - 0.1, "linear": share}
                outcomes.append(outcome | ({"classifier": share + 0.1} if "sup" in method else {}))
    plan = {"seeds": list(SEEDS), "amounts": list(AMOUNTS), "methods": list(LABELS)}
    origin = {"profile": profile, "data": "invented"}
    return {"plan": plan, "outcomes": outcomes, "provenance": origin}


def as_claimed(method, order, amount):
    if order in ("none", "random"):
        return -amount / 2000
    if order == "lowest":
        return -amount / 500
    return (-1 if method == "supervised" else 1) * amount / 500


def data_loss_alone(method, order, amount):
    return -amount / 500


def test_the_interval_is_student_s_for_pairs():
    rng = np.random.default_rng(1)
    for n in (2, 3, 8):
        a, b = rng.normal(size=(2, n))
        found = effects.t_interval(a - b, level=0.9)
        expected = stats.ttest_rel(a, b).confidence_interval(0.9)
        assert found[:3] == pytest.approx(((a - b).mean(), expected.low, expected.high))
    by_hand = effects.t_interval(np.array([1.0, 2.0, 3.0]))
    # t with two degrees of freedom at 0.975 is 4.302653; the deviation is 1.
    assert by_hand.high - by_hand.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_three_seeds_cover_as_often_as_the_level_says():
    draws = np.random.default_rng(2).normal(0.3, 2.0, (4000, 3))
    covered = np.mean([low <= 0.3 <= high for _, low, high, _ in map(effects.t_interval, draws)])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


def test_one_seed_has_no_interval_and_none_no_mean():
    assert np.isnan(effects.t_interval(np.array([0.5])).low)
    with pytest.raises(InfluenceError, match="no seed"):
        effects.t_interval(np.array([]))


def test_differences_are_taken_within_seeds():
    record = invented(as_claimed)
    found = effects.accuracies(record, "simclr", "linear")
    assert set(found) == {("none", 0), *((order, k) for k in AMOUNTS for order in ORDERS)}
    gain = effects.difference(found, "highest", "random", 40)
    # Seeds differ by 5 points, pairs by a tenth of one.
    assert gain == pytest.approx(np.full(3, 0.1), abs=0.01)
    unpaired = found["highest", 40] - found["random", 40][[1, 2, 0]]
    assert np.ptp(unpaired) > 5 * np.ptp(gain)
    for against in ("none", "random"):
        each = [effects.difference(found, "highest", against, k) for k in AMOUNTS]
        pooled = effects.difference(found, "highest", against)
        assert pooled == pytest.approx(np.mean(each, axis=0), rel=1e-12)
    shuffled = {**record, "outcomes": record["outcomes"][::-1]}
    again = effects.accuracies(shuffled, "simclr", "linear")
    assert all((again[cell] == found[cell]).all() for cell in found)


@pytest.mark.parametrize(
    ("effect", "free", "labelled", "lowest"),
    [
        (as_claimed, [REPRODUCED] * 2, [REPRODUCED] * 2, [REPRODUCED] * 2),
        # Whatever is removed costs the same: only random removal tells.
        (
            data_loss_alone, [CONTRADICTED, INCONCLUSIVE], [REPRODUCED, INCONCLUSIVE],
            [REPRODUCED, INCONCLUSIVE],
        ),
        (lambda *cell: 0.0, [INCONCLUSIVE] * 2, [INCONCLUSIVE] * 2, [INCONCLUSIVE] * 2),
        (lambda *c: -as_claimed(*c), [CONTRADICTED] * 2, [CONTRADICTED] * 2, [CONTRADICTED] * 2),
    ],
)  # fmt: skip
def test_verdicts(effect, free, labelled, lowest):
    found = effects.findings(invented(effect))
    assert [f.verdict for f in found] == free + labelled + lowest
    for f in found:
        for method, one in f.readings.items():
            assert ("ranked with labels" in one.words) == (method == "supervised")
    assert [f.against for f in found] == ["none", "random"] * 3


def test_an_interval_that_contains_0_decides_nothing():
    for finding in effects.findings(invented(as_claimed, spread=0.2)):
        for method, one in finding.readings.items():
            (_, low, high), sign = one.found[0], finding.statement.sign
            if method != "supervised":
                on, off = (low > 0, high < 0) if sign > 0 else (high < 0, low > 0)
                assert one.verdict == (REPRODUCED if on else CONTRADICTED if off else INCONCLUSIVE)


def test_the_smallest_effect_is_seen_four_times_in_five():
    """Simulated: three seeds, normal errors of deviation 1, a true mean of what is stated."""
    shift = effects.seen(np.array([-1.0, 0.0, 1.0]))
    draws = np.random.default_rng(3).normal(shift, 1.0, (20_000, 3))
    error = draws.std(axis=1, ddof=1) / math.sqrt(3)
    assert np.mean(abs(draws.mean(1) / error) > 4.302653) == pytest.approx(0.8, abs=0.01)
    assert np.isnan(effects.seen(np.array([1.0])))


def test_trainings_that_went_less_than_half_the_way_cannot_tell():
    record = invented(as_claimed, methods=("simclr",))
    own = effects.accuracies(record, "simclr", "linear")["none", 0].mean()
    # Half-way between b and 0.9074 lies ``own``.
    half = 2 * own - 0.9074
    for begin, told in ((half - 0.01, True), (half + 0.01, False)):
        record["before training"] = {"linear": [begin] * 3}
        added, gone = effects.way(record, "simclr")
        assert added == pytest.approx(own - begin)
        assert gone == pytest.approx(added / (0.9074 - begin))
        one = effects.findings(record)[0].readings["simclr"]
        assert one.verdict == (REPRODUCED if told else INCONCLUSIVE)
        assert ("would be seen 4 times in 5" in one.why) != told


def test_a_claim_about_several_methods_needs_them_all():
    def without_byol(method, order, amount):
        return 0.0 if method == "byol" else as_claimed(method, order, amount)

    first = effects.findings(invented(without_byol))[0]
    assert [first.readings[m].verdict for m in ("simclr", "byol", "barlow")] == [
        REPRODUCED, INCONCLUSIVE, REPRODUCED,
    ]  # fmt: skip
    assert first.verdict == INCONCLUSIVE
    early = effects.findings(invented(as_claimed, methods=("simclr",)))[0]
    assert [early.readings[m].verdict for m in ("simclr", "byol", "barlow")] == [
        REPRODUCED, NOT_TESTED, NOT_TESTED,
    ]  # fmt: skip
    assert early.verdict == NOT_TESTED


def test_stand_ins_are_not_tested_and_unfinished_plans_cannot_tell():
    tiny = effects.findings(invented(as_claimed, profile="tiny"))
    assert {one.verdict for f in tiny for one in f.readings.values()} == {NOT_TESTED}
    early = effects.findings(invented(as_claimed, seeds=(0, 42)))[0].readings["simclr"]
    assert (early.verdict, early.why) == (INCONCLUSIVE, "2 of 3 seeds are there")


def test_the_ledger_has_a_row_for_each_method_and_comparison(tmp_path):
    record = invented(as_claimed)
    results.save_json(tmp_path / "cpu" / "removal.json", record)
    rows = {row.id: row for row in effects.claims(tmp_path)}
    assert len(rows) == 2 * (3 + 1 + 4) + 1
    for finding in effects.findings(record):
        for method in finding.readings:
            row = rows[f"fig-6-{method}-{finding.statement.order}-{finding.against}"]
            found = effects.accuracies(record, method, effects.measure_of(method))
            values = effects.difference(found, finding.statement.order, finding.against)
            # In points, as its reason has them.
            assert tuple(row.found[0]) == pytest.approx(effects.t_interval(100 * values)[:3])
            assert (row.paper == "> 0") == (finding.statement.sign > 0)
    assert rows["fig-6-cifar100"].verdict == NOT_TESTED


def test_only_complete_seeds_count():
    record = invented(as_claimed)
    lost = [
        o for o in record["outcomes"]
        if (o["method"], o["order"], o["amount"], o["seed"]) != ("byol", "random", 40, 42)
    ]  # fmt: skip
    record = {**record, "outcomes": lost}
    assert effects.complete_seeds(record, "byol") == [0, 123]
    assert effects.complete_seeds(record, "simclr") == list(SEEDS)
    assert all(len(v) == 2 for v in effects.accuracies(record, "byol", "knn").values())
    assert effects.findings(record)[0].readings["byol"].why == "2 of 3 seeds are there"


def test_labels_are_judged_by_the_network_s_own_classifier():
    found = effects.findings(invented(as_claimed))[2].readings["supervised"]
    own = effects.accuracies(invented(as_claimed), "supervised", "classifier")
    change = effects.difference(own, "highest", "none").mean()
    assert found.found[0].value == pytest.approx(100 * change)
    assert effects.measure_of("byol") == "linear"


def test_the_largest_record_with_a_complete_seed(tmp_path):
    with pytest.raises(InfluenceError, match="influence-lab reproduce fig-6"):
        effects.largest(tmp_path)
    results.save_json(tmp_path / "tiny" / "removal.json", invented(as_claimed, profile="tiny"))
    begun = invented(as_claimed)
    begun["outcomes"] = begun["outcomes"][:3]
    results.save_json(tmp_path / "cpu" / "removal.json", begun)
    assert effects.largest(tmp_path)[0] == "tiny"
    results.save_json(tmp_path / "cpu" / "removal.json", invented(as_claimed, seeds=(0,)))
    assert effects.largest(tmp_path)[0] == "cpu"


def test_the_figure_shows_what_is_there():
    figure = effects.draw(invented(as_claimed, methods=("simclr", "supervised")))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == list(LABELS.values())
    empty = [axis.texts[0].get_text() if axis.texts else "" for axis in figure.axes]
    assert empty == ["", "not recorded yet", "not recorded yet", ""]
    line = figure.axes[0].containers[0].lines[0]
    found = effects.accuracies(invented(as_claimed), "simclr", "linear")
    assert line.get_ydata() == pytest.approx(
        [100 * (found["highest", k] - found["random", k]).mean() for k in (10, 40)]
    )
    nothing = figure.axes[0].containers[2].lines[0]
    assert nothing.get_ydata() == pytest.approx(
        [100 * (found["none", 0] - found["random", k]).mean() for k in (10, 40)]
    )
    assert len({axis.get_ylim() for axis in figure.axes}) == 1
    assert [t.get_text() for t in figure.legends[0].texts] == [
        "highest first", "lowest first", "nothing removed",
    ]  # fmt: skip
    begun = invented(as_claimed)
    begun["outcomes"] = []
    assert not effects.draw(begun).legends
    plt.close("all")
