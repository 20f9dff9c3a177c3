"""The planted benchmark's record, and how it counts."""

import pytest
from scipy.stats import binomtest

from influence_lab.datasets.lookalikes import COPIES, SETS
from influence_lab.experiments import planted
from influence_lab.records import results
from influence_ssl.analysis.duplicates import LIMITS, Group


def test_pairs_are_counted_as_by_hand() -> None:
    groups = [Group([0, 5], [], 1.0, 1.0), Group([1, 2, 6], [], 1.0, 1.0)]
    truth = {(0, 5): "jpeg", (1, 6): "crop", (3, 7): "crop"}
    found = planted.pairs(groups)
    assert found == {(0, 5), (1, 2), (1, 6), (2, 6)}
    # 1 and 2 are different originals; that 2 and the copy of 1 are grouped is the same mistake.
    assert planted.strangers(found, truth) == 1
    measured = planted.quality(found, truth)
    assert measured["false"] == [(1, 2), (2, 6)]
    assert measured["recall by kind"] == {"jpeg": 1.0, "crop": 0.5}
    for name, hits, n in (("precision", 2, 4), ("recall", 2, 3)):
        low, high = binomtest(hits, n).proportion_ci(method="wilson")
        assert measured[name] == pytest.approx([hits / n, low, high], abs=1e-4)


def test_the_default_limits_are_those_that_were_chosen() -> None:
    record = results.load_record("cpu", "planted")
    assert record["chosen"] == LIMITS._asdict()
    for name in SETS:
        for net in ("trained", "random"):
            assert record["half reported"][name][net]["pairs"] == 0, name
    for name in ("cifar10", "photographs"):
        assert set(record["half reported"][name]["trained"]["recall by kind"]) == {"file", *COPIES}
