"""Groups of duplicates: none among pictures that only look alike, and planted copies are found."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import scipy.cluster.hierarchy
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial.distance import squareform

from influence_lab.datasets import lookalikes
from influence_lab.experiments.planted import Pictures, encoders, pairs, plant, quality, strangers
from influence_ssl.analysis import duplicates
from influence_ssl.analysis.duplicates import Group, duplicate_groups
from influence_ssl.analysis.registration import Agreement, agreement

COUNT = 24


@pytest.fixture(scope="module")
def nets() -> dict[str, torch.nn.Module]:
    return encoders(0)


def groups(pictures: Pictures, net: torch.nn.Module) -> list[Group]:
    return duplicate_groups(pictures.represent(net), pictures)


@pytest.mark.parametrize("name", lookalikes.SETS)
def test_pictures_that_only_look_alike_make_no_group(
    name: str, nets: dict[str, torch.nn.Module]
) -> None:
    count = 5 * COUNT if name == "digits" else COUNT
    drawn = lookalikes.SETS[name](count, np.random.default_rng(1))
    pictures = Pictures([lookalikes.file_of(picture) for picture in drawn])
    for net in nets.values():
        assert groups(pictures, net) == []


@pytest.mark.parametrize("name", ["forms", "skies"])
def test_two_look_alikes_among_other_pictures_make_no_group(
    name: str, nets: dict[str, torch.nn.Module]
) -> None:
    """Without a set of their own kind to judge by."""
    rng = np.random.default_rng(5)
    noise = rng.integers(0, 256, (30, 6, 6, 3), np.uint8)
    others = [Image.fromarray(picture).resize((96, 96), 3) for picture in noise]
    drawn = [*lookalikes.SETS[name](2, rng), *others]
    pictures = Pictures([lookalikes.file_of(picture) for picture in drawn])
    for net in nets.values():
        assert groups(pictures, net) == []


def invoices(count: int) -> list[Image.Image]:
    """Invoices that differ in their number alone."""
    found = []
    for number in range(1000, 1000 + 37 * count, 37):
        page = Image.new("L", (600, 800), 255)
        draw = ImageDraw.Draw(page)
        draw.text((40, 30), "INVOICE", 0, ImageFont.load_default(30))
        draw.text((380, 40), f"No. {number}", 0, ImageFont.load_default(18))
        draw.rectangle((40, 180, 560, 600), outline=0, width=2)
        draw.text((60, 200), "Monthly hosting", 0, ImageFont.load_default(18))
        found.append(page)
    return found


@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize("photos", [0, 60])
def test_invoices_that_differ_in_their_number_make_no_group(
    count: int, photos: int, nets: dict[str, torch.nn.Module]
) -> None:
    """Alone, and among photographs, where their representations are all alike."""
    tiles = [
        tile for photo in lookalikes.photographs().values() for tile in lookalikes.tiles(photo)
    ]
    drawn = [*invoices(count), *tiles[:photos]]
    pictures = Pictures([lookalikes.file_of(picture) for picture in drawn])
    for net in nets.values():
        assert groups(pictures, net) == []


def test_representations_confirm_copies_and_no_row_of_similar_products(
    nets: dict[str, torch.nn.Module],
) -> None:
    """Among photographs, the products' representations are all alike."""
    tiles = [
        tile for photo in lookalikes.photographs().values() for tile in lookalikes.tiles(photo)
    ]
    discs = []
    for k in range(30):
        disc = Image.new("RGB", (200, 200), "white")
        box = (60 - k / 2, 60 - k / 2, 140 + k / 2, 140 + k / 2)
        ImageDraw.Draw(disc).ellipse(box, fill=(200, 30 + 3 * k, 30))
        discs.append(disc)
    files = [lookalikes.file_of(picture) for picture in [*discs, *tiles]]
    copies = [lookalikes.COPIES["jpeg"](tile, None) for tile in tiles[:5]]
    found = groups(Pictures([*files, *copies]), nets["trained"])
    sure = duplicates.confirmed({"duplicate groups": [group._asdict() for group in found]})
    wanted = [[30 + k, len(files) + k] for k in range(5)]
    assert [group.members for k, group in enumerate(found) if sure[k]] == wanted
    assert len(found) > 5


def test_copies_of_invoices_that_differ_in_their_number_are_found(
    nets: dict[str, torch.nn.Module],
) -> None:
    drawn = invoices(6)
    files = [lookalikes.file_of(picture) for picture in drawn]
    copies = [lookalikes.COPIES["jpeg"](page.convert("RGB"), None) for page in drawn[:3]]
    pictures = Pictures([*files, *copies])
    for net in nets.values():
        assert pairs(groups(pictures, net)) == {(0, 6), (1, 7), (2, 8)}


@pytest.mark.parametrize("saved", ["jpeg", "strong jpeg", "brightness", "resize"])
def test_a_copy_differs_all_over_and_another_number_in_one_place(saved: str) -> None:
    rng = np.random.default_rng(0)

    def seen(one: Image.Image, other: Image.Image) -> Agreement:
        pictures = (
            torch.from_numpy(np.asarray(picture.convert("RGB").resize((256, 256), 2)).copy())
            for picture in (one, other)
        )
        source, target = (picture.float().permute(2, 0, 1)[None] for picture in pictures)
        return agreement(source, target, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))

    page, other = invoices(2)
    assert seen(page, other).spread.item() < 0.1
    copy = Image.open(io.BytesIO(lookalikes.COPIES[saved](page.convert("RGB"), rng)))
    assert seen(page, copy).spread.item() > 0.4


def test_planted_copies_of_every_kind_are_found(nets: dict[str, torch.nn.Module]) -> None:
    photos = lookalikes.photographs().values()
    tiles = [tile for photo in photos for tile in lookalikes.tiles(photo)]
    pictures, truth = plant(tiles, 2, np.random.default_rng(3))
    for net in nets.values():
        found = pairs(groups(pictures, net))
        measured = quality(found, truth)
        assert strangers(found, truth) == 0
        assert measured["precision"][0] == 1
        assert measured["recall"][0] >= 0.85
        for kind in ("file", "format", "webp", "mirror", "half turn", "quarter turn"):
            assert measured["recall by kind"][kind] == 1, kind


def test_a_chain_of_neighbours_is_no_group(nets: dict[str, torch.nn.Module]) -> None:
    """Each picture is nearly the next one; the first and the last are not the same."""
    rng = np.random.default_rng(0)
    wide = Image.fromarray(rng.integers(0, 256, (12, 40, 3), np.uint8)).resize((800, 96), 3)
    views = [wide.crop((x, 0, x + 96, 96)) for x in range(0, 240, 12)]
    pictures = Pictures([lookalikes.file_of(view) for view in views])
    for net in nets.values():
        for group in groups(pictures, net):
            assert max(group.members) - min(group.members) <= 2


def test_sixteen_thousand_copies_of_a_file_are_one_group() -> None:
    rng = np.random.default_rng(0)
    files = [
        lookalikes.file_of(Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)))
        for _ in range(20)
    ]
    pictures = Pictures(files)
    copies = 16_000
    pictures.sha256 += copies * pictures.sha256[:1]
    pictures.thumbnails = np.concatenate(
        [pictures.thumbnails, np.broadcast_to(pictures.thumbnails[:1], (copies, 32, 32))]
    )
    z = torch.randn(len(pictures.sha256), 16, generator=torch.Generator().manual_seed(0))
    (group,) = duplicate_groups(z, pictures)
    assert group.members == [0, *range(20, 20 + copies)]
    assert group.reasons == ["same file"]


def test_pairs_are_aligned_as_if_each_were_cropped_alone(monkeypatch) -> None:
    """Pearson's correlation of areas that a numerical integral averages; pairs share pictures."""
    rng = np.random.default_rng(0)
    grey = rng.normal(size=(6, 4, 4)).repeat(8, 1).repeat(8, 2).astype(np.float32)
    ends = [(0, k) for k in range(1, 6)] + [(2, 3), (1, 4)]
    turn = [0, 3, 5, 0, 0, 6, 0]

    def areas(picture, x, y, length):
        edges = [start + np.linspace(0, length, 9) for start in (y, x)]
        below = picture.astype(np.float64)
        for edge in edges:
            total = np.concatenate([np.zeros((1, below.shape[1])), below.cumsum(0)])
            at = np.stack([np.interp(edge, np.arange(33), column) for column in total.T], 1)
            below = np.diff(at, axis=0).T
        return below

    def highest(cropped, target):
        return max(
            np.corrcoef(areas(cropped, x, y, 32 * s).ravel(), areas(target, 0, 0, 32).ravel())[0, 1]
            for s in (1, 0.95, 0.9, 0.85, 0.8)
            for x in np.linspace(0, 32 * (1 - s), 5)
            for y in np.linspace(0, 32 * (1 - s), 5)
        )

    read, crops = [], duplicates._crops
    monkeypatch.setattr(duplicates, "_crops", lambda g, w: read.append(len(g)) or crops(g, w))
    found, first, _ = duplicates._aligned(
        torch.from_numpy(grey), torch.tensor(ends), torch.tensor(turn), 8
    )
    for k, ((a, b), t) in enumerate(zip(ends, turn, strict=True)):
        other = np.rot90(grey[b], t % 4)
        one, other = grey[a], other[:, ::-1] if t >= 4 else other
        wanted = highest(one, other), highest(other, one)
        assert found[k].item() == pytest.approx(max(wanted), abs=1e-5)
        assert first[k].item() == (wanted[0] > wanted[1])
    # Each of five scales crops each picture once, as it stands or turned.
    different = {(a, 0) for a, _ in ends} | {(b, t) for (_, b), t in zip(ends, turn, strict=True)}
    assert sum(read) == 5 * len(different)


def edges_of(ends: np.ndarray, apart: np.ndarray) -> duplicates._Pairs:
    near = torch.from_numpy(apart.astype(np.float32))
    turn = torch.zeros(len(ends), dtype=torch.int64)
    return duplicates._Pairs(torch.from_numpy(ends), turn, 1 - near, near, torch.ones_like(near))


@pytest.mark.parametrize("ties", [False, True])
def test_groups_are_those_of_complete_linkage_on_the_matrix_of_all_pairs(ties: bool) -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 8, 20, 40) * 20:
        ends = np.argwhere(np.triu(rng.random((n, n)) < rng.choice([0.05, 0.2, 0.7]), 1))
        apart = rng.integers(0, 3, len(ends)) / 64 if ties else rng.random(len(ends)) / 20
        far = np.ones((n, n)) - np.eye(n)
        far[ends[:, 0], ends[:, 1]] = far[ends[:, 1], ends[:, 0]] = apart
        tree = scipy.cluster.hierarchy.linkage(squareform(far), "complete")
        label = scipy.cluster.hierarchy.fcluster(tree, 0.75, "distance")
        wanted = {tuple(np.flatnonzero(label == c).tolist()) for c in set(label.tolist())}
        found = duplicates._cliques(n, edges_of(ends, apart))
        assert {tuple(group.members) for group in found} == wanted
        for group in found:
            inside = far[np.ix_(group.members, group.members)]
            assert group.pixels == pytest.approx(1 - inside.max(), abs=1e-6)


def test_a_chain_of_thousands_of_images_needs_no_matrix_of_all_pairs() -> None:
    n = 4000
    ends = np.stack([np.arange(n - 1), np.arange(1, n)], 1)
    edges = edges_of(ends, np.random.default_rng(0).random(n - 1) / 20)
    tracemalloc.start()
    found = duplicates._cliques(n, edges)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(len(group.members) for group in found) == 2
    assert peak < n * n  # one byte per pair; the matrix takes eight
