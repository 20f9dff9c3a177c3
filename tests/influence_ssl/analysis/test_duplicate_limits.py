"""The limits of the search for duplicates: a case on each side of each, on pairs built by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from influence_ssl.analysis import duplicates, registration
from influence_ssl.analysis.duplicates import ALONE, BOTH, LIMITS, SAME, TURNED, Group, Search
from influence_ssl.analysis.registration import Agreement

Pair = dict[str, float]


def pairs(ends: list[tuple[int, int]], *differing: Pair) -> duplicates._Pairs:
    """Pairs that all hold by far, except for what differs in each."""
    usual = {"turn": 0, "cosine": 0.9, "apart": 0.01, "same": 0.9}
    rows = [usual | differs for differs in differing or [{}] * len(ends)]
    turn, *values = (torch.tensor([row[name] for row in rows]) for name in usual)
    return duplicates._Pairs(
        torch.tensor(ends).view(-1, 2), turn.long(), *(column.float() for column in values)
    )


def searched(count: int, known: duplicates._Pairs) -> Search:
    """A search among files that were compared already."""
    search = Search.__new__(Search)
    search.rows, search.files = list(range(count)), [[i] for i in range(count)]
    search.pairs, search._more = known, known.rows(known.ends[:, 0] < 0)
    search._known = {tuple(ends) for ends in known.ends.tolist()}
    return search


DISAGREES = {"cosine": -0.5}


@pytest.mark.parametrize(
    ("inside", "beyond", "outsiders"),
    [
        pytest.param({"apart": 0.049}, {"apart": 0.051}, (1.0, 1.0), id="pixels"),
        pytest.param({"same": 0.31}, {"same": 0.29}, (1.0, 1.0), id="a tile of its own"),
        pytest.param({"apart": 0.039}, {"apart": 0.041}, (0.08, 1.0), id="first's look-alike"),
        pytest.param({"apart": 0.039}, {"apart": 0.041}, (1.0, 0.08), id="second's look-alike"),
        pytest.param({"cosine": 0.0}, {"cosine": -0.01}, (1.0, 1.0), id="representation objects"),
        pytest.param(
            DISAGREES | {"turn": 5}, DISAGREES, (1.0, 1.0), id="a turn may change a representation"
        ),
        pytest.param(
            DISAGREES | {"apart": 0.0019},
            DISAGREES | {"apart": 0.0021},
            (1.0, 1.0),
            id="equal pixels need no representation",
        ),
        pytest.param(
            DISAGREES | {"apart": 0.001, "same": 0.91},
            DISAGREES | {"apart": 0.001, "same": 0.89},
            (1.0, 1.0),
            id="equal in every tile",
        ),
    ],
)
def test_a_pair_holds_up_to_its_limit(
    inside: Pair, beyond: Pair, outsiders: tuple[float, float]
) -> None:
    both = pairs([(0, 1), (0, 1)], inside, beyond)
    assert duplicates._hold(both, torch.tensor(outsiders), LIMITS).tolist() == [True, False]


def test_an_outsider_differs_in_its_pixels_or_in_a_tile() -> None:
    """Pairs less alike than 0.9 are not compared in detail, so no distance counts beyond 0.1."""
    known = pairs(
        [(0, 1), (2, 3), (4, 5), (6, 7), (2, 4)],
        {"apart": 0.051},
        {"apart": 0.049},
        {"apart": 0.02, "same": 0.29},
        {"apart": 0.02, "same": 0.31},
        {"apart": 0.4},
    )
    found = searched(9, known)._outsiders(known, LIMITS)
    wanted = [0.051, 0.051, 0.1, 0.1, 0.02, 0.02, 0.1, 0.1, 0.1]
    assert found.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(("apart", "wanted"), [(0.029, [[0, 1, 2]]), (0.031, [[0, 1]])])
def test_pairs_compared_later_are_judged_by_the_same_look_alike(
    monkeypatch: pytest.MonkeyPatch, apart: float, wanted: list[list[int]]
) -> None:
    """The first and the last of a chain; the first has a look-alike at a distance of 0.06."""
    known = pairs([(0, 1), (1, 2), (0, 3)], {}, {"apart": 0.02}, {"apart": 0.06, "cosine": 0.0})
    monkeypatch.setattr(
        Search, "_compared", lambda self, ends: pairs(ends.tolist(), {"apart": apart})
    )
    assert [group.members for group in searched(4, known).groups()] == wanted


@pytest.mark.parametrize(
    ("differing", "reasons"),
    [
        pytest.param([{"cosine": 0.41}], [BOTH], id="confirmed"),
        pytest.param([{"cosine": 0.39}], [ALONE], id="not confirmed"),
        pytest.param([{"cosine": 0.9, "turn": 2}], [TURNED], id="turned"),
        pytest.param(
            [{"cosine": 0.41}, {"cosine": 0.39}, {"turn": 4}],
            sorted([BOTH, ALONE, TURNED]),
            id="all",
        ),
    ],
)
def test_a_representation_confirms_pixels_from_the_support_on(
    differing: list[Pair], reasons: list[str]
) -> None:
    ends = [(0, 1), (0, 2), (1, 2)][: len(differing)]
    (group,) = duplicates._cliques(2 + (len(ends) > 1), pairs(ends, *differing))
    assert group.reasons == reasons
    assert group.representation == pytest.approx(min(d.get("cosine", 0.9) for d in differing))


@pytest.mark.parametrize(("cosine", "kept"), [(0.59, BOTH), (0.61, ALONE)])
def test_a_look_alike_half_as_far_by_representation_leaves_the_pixels_alone(
    cosine: float, kept: str
) -> None:
    """1 − 0.8 is half of 1 − 0.6. The other pairs inside the group are no look-alikes."""
    known = pairs([(0, 1), (0, 2), (3, 4)], {}, {"cosine": cosine}, {"cosine": 0.99})
    given = [
        Group([0, 1], [BOTH, TURNED], 0.99, 0.8),
        Group([2], [], 1.0, 1.0),
        Group([3, 4], [BOTH], 0.99, 0.8),
    ]
    found = searched(5, known)._doubted(given, LIMITS)
    assert found == [given[0]._replace(reasons=sorted([kept, TURNED])), *given[1:]]


@pytest.mark.parametrize(
    ("reasons", "sure"),
    [
        ([SAME], True),
        ([BOTH], True),
        ([SAME, BOTH], True),
        ([SAME, ALONE], False),
        ([BOTH, ALONE], False),
        ([BOTH, TURNED], False),
        ([], False),
    ],
)
def test_a_group_is_confirmed_by_files_and_representations_alone(
    reasons: list[str], sure: bool
) -> None:
    assert duplicates.confirmed({"duplicate groups": [{"reasons": reasons}]}) == {0: sure}


def test_a_group_without_reasons_is_not_confirmed() -> None:
    assert duplicates.confirmed({"duplicate groups": [{}]}) == {0: False}


Compare = Callable[..., duplicates._Pairs]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Compare:
    """The comparison of a picture with one that has these coarse correlations with it, alignments
    (of 8 and of 16 cells) and agreements (of thumbnails, and of pictures of 64 and 256 pixels)."""

    def compared(
        cosine: float = 0.9,
        straight: float = 0.9,
        turned: float = 0.0,
        aligned: tuple[float, float] = (1.0, 1.0),
        agreed: tuple[Pair, ...] = ({}, {}, {}),
    ) -> duplicates._Pairs:
        # Each of the eight turns brings another cell of the second picture to the first one's only.
        cells = torch.arange(64).view(8, 8)
        meets = [int(duplicates._turn(cells, turn)[0, 1]) for turn in range(8)]
        assert len(set(meets)) == 8
        search = searched(2, pairs([]))
        search.coarse = torch.zeros(2, 64)
        search.coarse[0, 1], search.coarse[1, meets[0]] = 1, straight
        search.coarse[1, meets[3]] = turned
        search.white = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]])
        search.grey, search.progress = torch.zeros(2, 32, 32), False
        alike = dict(zip((8, 16), aligned, strict=True))
        agrees = dict(zip((0, 64, 256), agreed, strict=True))

        def fit(grey, ends, turn, cells, progress):
            whole = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(len(ends), 4)
            return torch.full((len(ends),), alike[cells]), turn == 0, whole

        def agree(self, ends, turn, first, window, side):
            usual = {"correlation": 0.99, "worst": 0.8, "contrast": 40.0, "spread": 1.0}
            values = (usual | agrees[side]).values()
            return Agreement(*(torch.full((len(ends),), value) for value in values))

        monkeypatch.setattr(duplicates, "_aligned", fit)
        monkeypatch.setattr(Search, "_agree", agree)
        return search._compared(torch.tensor([[0, 1]]))

    return compared


@pytest.mark.parametrize(
    ("inside", "beyond"),
    [
        pytest.param(
            {"cosine": 0.41, "straight": 0.31}, {"cosine": 0.39, "straight": 0.31}, id="support"
        ),
        pytest.param(
            {"cosine": 0.41, "straight": 0.31},
            {"cosine": 0.41, "straight": 0.29},
            id="supported, yet another picture",
        ),
        pytest.param(
            {"cosine": 0.0, "straight": 0.81}, {"cosine": 0.0, "straight": 0.79}, id="pixels alone"
        ),
        pytest.param(
            {"straight": 0.0, "turned": 0.91}, {"straight": 0.0, "turned": 0.89}, id="turned"
        ),
        pytest.param({"aligned": (0.91, 1.0)}, {"aligned": (0.89, 1.0)}, id="aligned on 8 cells"),
        pytest.param({"aligned": (1.0, 0.91)}, {"aligned": (1.0, 0.89)}, id="aligned on 16 cells"),
    ],
)
def test_coarse_views_rule_out_a_pair_beyond_their_limit(
    compare: Compare, inside: Pair, beyond: Pair
) -> None:
    assert compare(**inside).ends.tolist() == [[0, 1]]
    assert compare(**beyond).ends.tolist() == []


@pytest.mark.parametrize(
    ("straight", "turned", "turn"),
    [
        pytest.param(0.85, 0.91, 3, id="like its turn"),
        pytest.param(0.85, 0.89, 0, id="too little like its turn"),
        pytest.param(0.94, 0.965, 3, id="more like its turn"),
        pytest.param(0.94, 0.955, 0, id="a nearly symmetric picture is not turned"),
    ],
)
def test_a_pair_is_turned_if_its_turn_is_clearly_more_alike(
    compare: Compare, straight: float, turned: float, turn: int
) -> None:
    assert compare(straight=straight, turned=turned).turn.tolist() == [turn]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_pictures_that_show_too_little_are_not_compared(compare: Compare, stage: int) -> None:
    """At four grey levels; a flat thumbnail ends the comparison."""
    for contrast, same in ((4.1, 0.8), (3.9, -1)):
        agreed = [{}, {}, {}]
        agreed[stage] = {"contrast": contrast}
        assert compare(agreed=agreed).same.tolist() == pytest.approx([same])


def test_a_difference_in_one_place_counts_in_full_detail_alone(compare: Compare) -> None:
    for spread, same in ((0.26, 0.8), (0.24, -1)):
        agreed = {"spread": 0.01}, {"spread": 0.01}, {"spread": spread}
        assert compare(agreed=agreed).same.tolist() == pytest.approx([same])


@pytest.mark.parametrize(
    ("first", "further"),
    [
        pytest.param({"correlation": 0.91}, True, id="plausible"),
        pytest.param({"correlation": 0.89}, False, id="implausible"),
        pytest.param({"worst": 0.21}, True, id="doubtful"),
        pytest.param({"worst": 0.19}, False, id="another tile"),
    ],
)
def test_thumbnails_leave_a_pair_open_up_to_their_limit(
    compare: Compare, first: Pair, further: bool
) -> None:
    found = compare(agreed=(first, {"correlation": 0.97}, {"correlation": 0.98}))
    wanted = 0.98 if further else first.get("correlation", 0.99)
    assert 1 - found.apart.item() == pytest.approx(wanted)


def test_pictures_are_compared_at_the_side_of_the_smaller_one() -> None:
    """An enlarged picture shows no more detail, whichever of the two it is."""
    search = searched(2, pairs([]))
    search._detail = [np.zeros((side, side, 3), np.uint8) for side in (64, 32)].__getitem__
    assert search._side(0, 1) == search._side(1, 0) == 32


@pytest.mark.parametrize(("outside", "correlation"), [(4, 1), (6, -1)])
def test_pictures_are_compared_if_19_of_20_parts_are_common(
    outside: int, correlation: float
) -> None:
    """Two views of one wide picture, of which the second begins some percent further right."""
    wide = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 100, 110))).float()
    one, other = wide[..., :100], wide[..., outside : outside + 100]
    window = torch.tensor([[1.0, 1.0, 2 * outside / 100, 0.0]])
    found = registration._correlation(*registration._common(one, other, window))
    assert found.item() == pytest.approx(correlation, abs=1e-3)
