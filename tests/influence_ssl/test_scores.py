"""Scores: order, files, provenance."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from nets import Windows, build, images

from influence_ssl import InfluenceError, InfluenceScorer, Scores


def example(names=True):
    return Scores(
        np.array([-2.0, -0.1, -2.0, -1 / 3, 0.0]),
        np.array([np.nan, 0.1, 1e-17, 2 / 3, 0.0]),
        np.array([7, 3, 1, 0, 9]),
        ["a/ü,1.png", 'b"2".png', "NA", "1", ""] if names else None,
        {"seed": 3, "layers": {"a": [1, 2]}},
    )


def test_order_is_by_magnitude_and_ties_by_index():
    assert example().order("highest").tolist() == [2, 0, 3, 1, 4]
    assert example().order("lowest").tolist() == [4, 1, 3, 2, 0]
    with pytest.raises(InfluenceError, match="which='most'"):
        example().order("most")
    np.testing.assert_array_equal(example().magnitude, -example().values)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
@pytest.mark.parametrize("names", [True, False])
def test_files_give_back_what_was_saved(tmp_path, suffix, names):
    path = tmp_path / f"scores{suffix}"
    example(names).save(path)
    loaded = Scores.load(path)
    for column in ("values", "standard_error", "index"):
        np.testing.assert_array_equal(getattr(loaded, column), getattr(example(names), column))
    assert loaded.names == example(names).names
    assert loaded.provenance == example(names).provenance
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_names_may_hold_line_breaks(tmp_path, suffix):
    names = ["a\rb", "c\nd", "e\r\nf", "plain, with a comma", "g"]
    found = example()
    Scores(found.values, found.standard_error, found.index, names).save(tmp_path / f"s{suffix}")
    loaded = Scores.load(tmp_path / f"s{suffix}")
    assert loaded.names == names
    np.testing.assert_array_equal(loaded.standard_error, found.standard_error)


LOST = {".npz": {"a\0", "\0"}, ".csv": {"a\udce9", "\ud800"}, ".parquet": {"a\udce9", "\ud800"}}
ODD_NAMES = "a\0b", "\ufeffa", "\x1a", "\u2028", "", " ", '"\r', "nan", "#"


@pytest.mark.parametrize("suffix", LOST)
@pytest.mark.parametrize("name", [*ODD_NAMES, *sorted(set().union(*LOST.values()))], ids=ascii)
@pytest.mark.parametrize("place", [0, 4])
def test_a_name_comes_back_as_it_was_or_is_refused(tmp_path, suffix, name, place):
    path, found = tmp_path / f"s{suffix}", example()
    found.save(path)
    before, names = path.read_bytes(), [f"{i}.png" for i in range(5)]
    names[place] = name
    odd = replace(found, names=names)
    if name not in LOST[suffix]:
        odd.save(path)
        assert Scores.load(path).names == names
        return
    with pytest.raises(InfluenceError) as caught:
        odd.save(path)
    assert repr(name) in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "names", [["a", 2, None, "d", "e"], range(5), [Path("x/y"), *"bcde"], ["a", np.nan, *"cde"]]
)
def test_names_that_are_no_strings_are_refused_where_they_enter(names):
    found, net, x = example(), build(Windows), images(5)
    for kind in (list, lambda x: pandas.Series(list(x), dtype=object)):
        with pytest.raises(InfluenceError, match=r"names must be strings, but name \d is .*str\(n"):
            replace(found, names=kind(names))
        scorer = InfluenceScorer(net, progress=False).fit(x, keep=True)
        for call in (scorer.score, scorer.fit, scorer.influence):
            with pytest.raises(InfluenceError, match="names must be strings, but name"):
                call(x, names=kind(names))


def test_columns_are_arrays_of_their_axes():
    found = example()
    assert replace(found, values=found.values.tolist()) == found
    for name, column in (("values", 3), ("index", None), ("loss", np.zeros((5, 1)))):
        with pytest.raises(InfluenceError, match=f"Scores: {name} must be an array with 1 axes"):
            replace(found, **{name: column})
    with pytest.raises(InfluenceError, match="per_draw must be an array with 2 axes"):
        replace(found, per_draw=np.zeros(5))


def test_table_for_pandas():
    table = example().to_pandas()
    assert list(table.columns) == ["index", "name", "score", "standard_error"]
    assert table["score"].tolist() == example().values.tolist()


def test_a_failed_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "scores.npz"
    example().save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(InfluenceError, match=r"scores\.npz' cannot be written \(No space left"):
        example().save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["scores.npz"]


def test_unusable_files(tmp_path):
    with pytest.raises(InfluenceError, match="suffix must be one of"):
        example().save(tmp_path / "scores.txt")
    with pytest.raises(InfluenceError, match="cannot be written"):
        example().save(tmp_path / "no" / "scores.npz")
    for suffix in (".npz", ".csv", ".parquet"):
        path = tmp_path / f"bad{suffix}"
        with pytest.raises(InfluenceError, match="cannot be read"):
            Scores.load(path)
        path.write_bytes(b"not scores")
        with pytest.raises(InfluenceError, match=f"bad{suffix}: is not a file of scores"):
            Scores.load(path)
    with pytest.raises(InfluenceError, match="different lengths"):
        Scores(np.zeros(2), np.zeros(2), np.arange(3))


def test_a_table_that_pandas_wrote_has_lost_its_provenance(tmp_path):
    table, bare = example().to_pandas(), tmp_path / "bare.parquet"
    table.to_csv(tmp_path / "table.csv", index=False)
    table.to_parquet(tmp_path / "table.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"score": [-1.0]}), bare)  # without any metadata
    for path in (tmp_path / "table.csv", tmp_path / "table.parquet", bare):
        with pytest.raises(InfluenceError, match="no provenance, which is lost when pandas"):
            Scores.load(path)


def whole():
    """With all that a pass computes."""
    rng, n = np.random.default_rng(0), len(example())
    return replace(
        example(), loss=rng.random(n), gradient_norm=rng.random(n), per_draw=rng.random((2, n)),
        representations=rng.random((n, 3), np.float32),
    )  # fmt: skip


def test_an_npz_keeps_all_that_the_pass_computed(tmp_path):
    whole().save(tmp_path / "scores.npz")
    assert Scores.load(tmp_path / "scores.npz") == whole()


def test_scores_can_be_compared_and_not_hashed():
    """As arrays: equal scores have no common number that their parts could give."""
    assert whole() == whole()
    with pytest.raises(TypeError, match="unhashable type: 'Scores'"):
        hash(whole())


@pytest.mark.parametrize("column", ["loss", "gradient_norm", "per_draw", "representations"])
def test_scores_that_differ_in_one_number_are_not_equal(column):
    other = whole()
    getattr(other, column).flat[0] += 1e-9 if column != "representations" else 1e-3
    assert other != whole()
    assert replace(whole(), **{column: None}) != whole()
    assert replace(whole(), provenance={}) != whole()
    assert replace(whole(), names=list("abcdefgh")[: len(whole())]) != whole()


@pytest.mark.parametrize(
    "rows", [slice(1, 3), [3, 0], np.arange(len(example())) % 2 == 1, np.array([2])]
)
def test_rows_keep_their_index_names_and_columns(rows):
    part, all_rows = whole()[rows], np.arange(len(whole()))[rows]
    assert part.index.tolist() == whole().index[all_rows].tolist()
    assert part.names == [whole().names[i] for i in all_rows]
    np.testing.assert_array_equal(np.asarray(part), whole().values[all_rows])
    np.testing.assert_array_equal(part.per_draw, whole().per_draw[:, all_rows])
    np.testing.assert_array_equal(part.representations, whole().representations[all_rows])
    assert part.provenance == whole().provenance
    with pytest.raises(InfluenceError, match=r"scores\[1\]: give a slice"):
        whole()[1]


@pytest.mark.parametrize(
    "rows",
    [
        *(np.array(3), None, np.zeros((2, 2), int), (0, 1), (), np.array(True), torch.tensor(1)),
        *(1.5, "loss", {1}, [1.5], [9], [-6], [True], [None], slice(1.5, 2), slice(None, None, 0)),
    ],
)
def test_rows_that_are_no_list_of_positions(rows):
    with pytest.raises(
        InfluenceError, match=r"^scores\[.*\]: give a slice, a mask or a list of po"
    ):
        whole()[rows]


@pytest.mark.parametrize("kind", [torch.tensor, pandas.Series, np.array, list])
def test_rows_of_any_kind(kind):
    for rows in ([2], [3, 1], [False, True, False, True, True]):
        assert whole()[kind(rows)] == whole()[np.array(rows)]


@pytest.mark.parametrize("kind", [tuple, np.array, lambda x: pandas.Series(x, [7, 1, 0, 3, 2])])
def test_names_come_in_any_order_of_labels(kind):
    names, values = list("vwxyz"), np.arange(5.0)
    scores = Scores(values, values, np.arange(5), kind(names))
    assert list(scores[3:5].names) == ["y", "z"]
    assert scores == Scores(values, values, np.arange(5), names)
