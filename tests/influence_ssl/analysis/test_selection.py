"""What is dropped as a duplicate has a better copy that stays."""

from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import save

from influence_ssl.analysis.duplicates import ALONE, BOTH
from influence_ssl.analysis.selection import SHARE, Rule, select
from influence_ssl.errors import InfluenceValueError


def table(groups: list[int | None], rng: np.random.Generator) -> pandas.DataFrame:
    n = len(groups)
    return pandas.DataFrame(
        {
            "index": rng.permutation(n),
            "name": [f"{k:03}.png" for k in rng.permutation(n)],
            "sha256": [f"{k % 4:064x}" for k in range(n)],
            "score": -rng.integers(1, 5, n).astype(float),
            "standard_error": np.full(n, np.nan),
            "duplicate_group": pandas.array(groups, dtype="Int64"),
            "width": rng.integers(1, 4, n),
            "height": rng.integers(1, 4, n),
            "bytes": rng.integers(1, 4, n),
        }
    )


def told(*reasons: str) -> dict[str, object]:
    return {"duplicate groups": [{"reasons": [reason]} for reason in reasons]}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=1, max_size=30),
    st.integers(0, 100),
    st.integers(0, 10**6),
)
def test_of_each_group_the_best_that_may_stay_stays(
    tmp_path_factory: pytest.TempPathFactory, groups: list[int | None], share: int, seed: int
) -> None:
    rows = table(groups, np.random.default_rng(seed))
    path = save(rows, tmp_path_factory.mktemp("s") / "s.csv", told(*5 * [BOTH]))
    highest = f"{share}%"
    _, others = select(path, Rule(highest=highest))
    keep, drop = select(path, Rule(highest=highest, duplicates=True))
    assert sorted(keep + drop) == sorted(rows["name"])
    assert set(others) <= set(drop)
    alone = set(rows["name"][rows["duplicate_group"].isna()])
    assert not alone & set(drop) - set(others)
    for _, members in rows.groupby("duplicate_group"):
        best = sorted(
            (name in others, -w * h, -size, name)
            for name, w, h, size in zip(
                members["name"], members["width"], members["height"], members["bytes"], strict=True
            )
        )
        stays = [name for *_, name in best if name in keep]
        free = [name for out, *_, name in best if not out]
        assert stays == free[:1]


def test_many_by_pixels_alone_are_refused_without_yes(tmp_path: Path) -> None:
    groups = [1, 1, 1, 2, 2, *[None] * 15]
    rows = table(groups, np.random.default_rng(0))
    rows["sha256"] = [f"{k:064x}" for k in range(20)]
    path = save(rows, tmp_path / "s.parquet", told(ALONE, ALONE))
    assert SHARE * 20 < 3
    with pytest.raises(InfluenceValueError, match=r"drop 3 of 20 images .* add --yes"):
        select(path, Rule(duplicates=True))
    assert len(select(path, Rule(duplicates=True, yes=True))[1]) == 3
    # Confirmed groups, and copies of a file in the others, do not count.
    save(rows, path, told(ALONE, BOTH))
    assert len(select(path, Rule(duplicates=True))[1]) == 3
    rows.loc[[0, 1, 2], "sha256"] = "same"
    save(rows, path, told(ALONE, ALONE))
    assert len(select(path, Rule(duplicates=True))[1]) == 3
