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


UNCONFIRMED = {
    "no groups in the provenance": [],
    "no reasons": [[], []],
    "some pairs by pixels alone": [[BOTH, ALONE], [BOTH, ALONE]],
}


@pytest.mark.parametrize("reasons", UNCONFIRMED.values(), ids=UNCONFIRMED)
def test_a_group_counts_as_confirmed_only_if_all_its_reasons_confirm_it(
    tmp_path: Path, reasons: list[list[str]]
) -> None:
    rows = table([1, 1, 1, 2, 2, *[None] * 15], np.random.default_rng(0))
    rows["sha256"] = [f"{k:064x}" for k in range(20)]
    provenance = {"duplicate groups": [{"reasons": found} for found in reasons]}
    path = save(rows, tmp_path / "s.parquet", provenance)
    with pytest.raises(InfluenceValueError, match="drop 3 of 20 images"):
        select(path, Rule(duplicates=True))


def test_without_digests_no_image_counts_as_a_copy(tmp_path: Path) -> None:
    rows = table([1, 1, 1, 1, *[None] * 16], np.random.default_rng(0)).drop(columns="sha256")
    path = save(rows, tmp_path / "s.parquet", told(ALONE))
    with pytest.raises(InfluenceValueError, match="drop 3 of 20 images"):
        select(path, Rule(duplicates=True))


def test_a_check_without_scores_drops_duplicates_by_pixels_alone_with_yes(tmp_path: Path) -> None:
    rows = table([1, 1, *[None] * 3], np.random.default_rng(0))
    rows = rows.drop(columns=["score", "standard_error", "sha256"])
    path = save(rows, tmp_path / "s.parquet", {"checked": True} | told(ALONE))
    with pytest.raises(InfluenceValueError, match="add --yes"):
        select(path, Rule(duplicates=True))
    assert len(select(path, Rule(duplicates=True, yes=True))[1]) == 1


def test_of_copies_with_equal_pixels_the_largest_file_stays(tmp_path: Path) -> None:
    rows = table([1, 1, 1], np.random.default_rng(0))
    rows["width"] = rows["height"] = 8
    rows["name"], rows["bytes"] = ["a.png", "b.png", "c.png"], [1, 3, 2]
    path = save(rows, tmp_path / "s.parquet", told(BOTH))
    assert select(path, Rule(duplicates=True))[0] == ["b.png"]


def test_a_magnitude_equal_to_a_threshold_is_kept(tmp_path: Path) -> None:
    rows = table([None] * 3, np.random.default_rng(0))
    rows["name"], rows["score"] = ["a.png", "b.png", "c.png"], [-1.0, -2.0, -3.0]
    path = save(rows, tmp_path / "s.parquet")
    assert select(path, Rule(above=2.0))[1] == ["c.png"]
    assert select(path, Rule(below=2.0))[1] == ["a.png"]


def test_of_equal_scores_the_lowest_index_is_dropped_first(tmp_path: Path) -> None:
    rows = table([None] * 9, np.random.default_rng(0)).assign(score=-1.0)
    path = save(rows, tmp_path / "s.parquet")
    first = rows["name"][rows["index"] == 0].tolist()
    assert select(path, Rule(lowest="1"))[1] == first
    assert select(path, Rule(highest="1"))[1] == first


@pytest.mark.parametrize(
    ("share", "count"), [("20%", 5), ("18%", 4), ("0%", 0), ("100%", 24), ("24", 24)]
)
def test_a_share_is_rounded_and_may_be_everything(tmp_path: Path, share: str, count: int) -> None:
    path = save(table([None] * 24, np.random.default_rng(0)), tmp_path / "s.parquet")
    assert len(select(path, Rule(highest=share))[1]) == count
    assert len(select(path, Rule(lowest=share))[1]) == count
