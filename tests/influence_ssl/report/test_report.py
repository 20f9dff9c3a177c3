"""The report: its content against planted truth."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scipy.stats
from PIL import Image
from reports import N, digests, make, save, scored
from sklearn.decomposition import PCA

from influence_ssl import InfluenceError, Scores
from influence_ssl.analysis.duplicates import ALONE
from influence_ssl.report.content import FIRST, GALLERY, GROUPS, MEMBERS
from influence_ssl.report.html import write
from influence_ssl.report.pictures import SIDE, _thumbnail
from influence_ssl.report.plane import plane
from influence_ssl.report.rows import BYTES


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def content(made: Path) -> dict[str, Any]:
    return json.loads((made / "report.json").read_text())


def test_galleries_are_the_ends_of_the_order(made: Path, content: dict[str, Any]) -> None:
    scores = Scores.load(made / "scores.parquet")
    for which in ("highest", "lowest"):
        expected = [scores.names[i] for i in scores.order(which)[:24]]
        assert [entry["name"] for entry in content[which]] == expected


def test_groups_tell_their_reason(content: dict[str, Any]) -> None:
    copies, crops = content["groups"]["shown"]
    assert [m["name"] for m in copies["members"]] == ["a/00000.png", "b/00001.png"]
    assert copies["reason"] == "Copies of one file."
    assert crops["size"] == 3
    assert "file" not in crops["reason"]
    assert 0.95 < crops["pixels"] < 1
    assert content["groups"]["images"] == 5


def test_groups_tell_the_rules_that_the_command_recorded(tmp_path: Path) -> None:
    rules = [
        {"members": [0, 1], "reasons": ["same file"], "pixels": 1.0, "representation": 1.0},
        {"members": [2, 3, 4], "reasons": [ALONE], "pixels": 0.985, "representation": 0.3},
    ]
    provenance = {"draws": 4, "reliability": 0.912, "duplicate groups": rules}
    table = scored()
    table["standard_error"] = 0.25 * table["score"].abs()
    scores = save(table, tmp_path / "s.parquet", provenance)
    write(scores, tmp_path / "r.html", None, None, tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    # What should be looked at first comes first.
    assert [group["group"] for group in found["groups"]["shown"]] == [2, 1]
    assert found["groups"]["unconfirmed"] == 1
    assert found["groups"]["shown"][0]["reason"] == (
        "Grouped by pixels alone; its least alike pair: pixels at full detail 0.985, whitened "
        "representation 0.300; cosine of representations 0.990."
    )
    page = (tmp_path / "r.html").read_text()
    assert "standard error above 25\N{NO-BREAK SPACE}% of their score" in page
    assert page.count("Check the first group with care: it rests on pixels alone") == 2
    assert "rank correlation 0.91" in page


def test_strangers_in_a_group_have_pixels_that_differ(made: Path, tmp_path: Path) -> None:
    table = scored()
    table["sha256"] = digests(made / "images", table["name"])
    table.loc[[20, 21], "duplicate_group"] = 3
    scores = save(table, tmp_path / "scores.csv")
    write(scores, tmp_path / "r.html", made / "images", None, tmp_path / "r.json")
    groups = {
        g["group"]: g for g in json.loads((tmp_path / "r.json").read_text())["groups"]["shown"]
    }
    assert groups[3]["pixels"] < 0.8 < groups[2]["pixels"]


def test_far_from_the_others_are_the_least_similar(content: dict[str, Any]) -> None:
    far = content["outliers"]
    expected = scored().nsmallest(round(0.05 * N), "similarity")["name"].tolist()
    assert expected[0] == "b/00007.png"
    assert [entry["name"] for entry in far["shown"]] == expected
    assert far["total"] == len(far["rows"]) == len(expected)


def test_breakdown_finds_the_label_that_was_planted(content: dict[str, Any]) -> None:
    found = content["breakdown"]
    group, camera, weight = found["columns"]
    rare = next(row for row in group["values"] if row["value"] == "rare")
    assert (rare["images"], rare["in_top"], group["top"]) == (50, 20, 30)
    assert rare["ratio"] == pytest.approx((20 / 30) / (50 / 300))
    expected = scipy.stats.fisher_exact([[20, 10], [30, 240]]).pvalue
    assert rare["p"] == pytest.approx(expected, rel=1e-5)
    assert rare["p_holm"] == pytest.approx(expected * found["tests"], rel=1e-5)
    assert all(row["p_holm"] > 0.05 for row in camera["values"])
    assert [row["images"] for row in weight["values"]] == [75] * 4
    assert weight["values"][0]["value"].startswith("up to 0.2")
    assert [row["column"] for row in found["left_out"]] == ["note"]
    assert found["matched"] == N


def test_unreadable_picture_is_listed(made: Path, content: dict[str, Any]) -> None:
    assert [name for name, _ in content["pictures"]["failed"]] == ["b/00007.png"]
    assert "1 picture cannot be shown" in (made / "report.html").read_text()


def test_another_file_under_an_image_s_name_is_not_shown(tmp_path: Path) -> None:
    table, images = scored(20), tmp_path / "images"
    for k, name in enumerate(table["name"]):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, 0, 0)).save(images / name)
    table["sha256"] = digests(images, table["name"])
    changed, nothing = table["name"][4], table["name"][7]
    table.loc[7, "sha256"] = None  # without a digest the name decides
    scores, page, words = (tmp_path / name for name in ("s.parquet", "r.html", "r.json"))
    save(table, scores)
    for name in (changed, nothing):
        Image.new("RGB", (8, 8), "blue").save(images / name)
    write(scores, page, images, None, words)
    failed = json.loads(words.read_text())["pictures"]["failed"]
    assert failed == [[changed, "no longer the image that was scored"]]
    assert "1 picture cannot be shown" in page.read_text()
    for name in table["name"]:
        Image.new("RGB", (8, 8), "blue").save(images / name)
    table.loc[7, "sha256"] = "0" * 64
    save(table, scores)
    with pytest.raises(InfluenceError, match=r"holds other images under the names of those"):
        write(scores, page, images)
    # Scores made from Python have no digests.
    save(table.drop(columns="sha256"), scores)
    write(scores, page, images, None, words)
    assert json.loads(words.read_text())["pictures"]["failed"] == []


def test_a_folder_of_which_images_are_changed_or_gone_is_refused(tmp_path: Path) -> None:
    table, images = scored(20), tmp_path / "images"
    for name in table["name"]:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "blue").save(images / name)
    table["sha256"] = "0" * 64
    (images / table["name"][0]).unlink()
    with pytest.raises(InfluenceError, match="holds other images under the names of those"):
        write(save(table, tmp_path / "s.parquet"), tmp_path / "r.html", images)


@pytest.mark.parametrize(
    ("count", "words"), [(1, "1 image has an EXIF"), (3, "3 images have an EXIF")]
)
def test_rotations_that_were_not_applied_are_told(tmp_path: Path, count: int, words: str) -> None:
    provenance = {"draws": 2, "data": {"EXIF rotation not applied": count}}
    write(save(scored(20), tmp_path / "s.parquet", provenance), tmp_path / "r.html")
    assert words in (tmp_path / "r.html").read_text()


def test_the_files_that_have_no_score_add_up(tmp_path: Path) -> None:
    data = {"skipped": [["a.jpg", "no image"]], "other files": {".heic": 2, ".dng": 1}}
    write(save(scored(20), tmp_path / "s.parquet", {"data": data}), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "1 image could not be read and has no score" in page
    assert "Left out by their names: 2 .heic, 1 .dng." in page


def test_a_single_thing_is_not_counted_in_the_plural(tmp_path: Path) -> None:
    """In a page with one of everything; no number has a noun of the wrong form."""
    rules = [{"members": [0, 1], "reasons": [ALONE], "pixels": 0.98, "representation": 0.3}]
    data = {"skipped": [["a.jpg", "no image"]], "EXIF rotation not applied": 1}
    table = scored(20)
    table.loc[table["duplicate_group"] == 2, "duplicate_group"] = None
    table.loc[5, "score"] = 0.0
    labels = pandas.DataFrame({"path": table["name"], "class": ["x", *"yyyzzz" * 3, ""]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    provenance = {"draws": 2, "duplicate groups": rules, "data": data}
    source = save(table, tmp_path / "s.parquet", provenance)
    write(source, tmp_path / "r.html", None, tmp_path / "labels.csv")
    text = re.sub(r"<[^>]+>", "", (tmp_path / "r.html").read_text().split("<main>")[1])
    text = " ".join(text.split('{"columns"')[0].split())
    nouns = "images|groups|pictures|files|tests|have|are|rest|contain"
    assert re.findall(rf"(?<![\d.,])1 (?:{nouns})\b.{{20}}", text) == []
    assert "1 image with magnitude ≤ 0 has no logarithm and is left out" in text
    assert "1 image has no value here and is left out" in text


def test_a_bare_file_works_and_says_what_is_missing(tmp_path: Path) -> None:
    n = 40
    scores = Scores(-np.arange(n, dtype=float), np.full(n, 0.5), np.arange(n))
    for suffix in (".npz", ".csv", ".parquet"):
        scores.save(tmp_path / f"s{suffix}")
        write(tmp_path / f"s{suffix}", tmp_path / "r.html", None, None, tmp_path / "r.json")
        found = json.loads((tmp_path / "r.json").read_text())
        assert found["missing"] == [
            *("name", "sha256", "loss", "gradient_norm", "nearest", "similarity"),
            "duplicate_group",
        ]
        assert found["groups"] is found["outliers"] is found["breakdown"] is None
        assert found["rows"]["values"][0] == list(range(1, n + 1))
        assert found["rows"]["values"][1][0] == "image 39"
        assert found["distribution"]["left_out"] == 1
        assert sum(found["distribution"]["counts"]) == n - 1


@pytest.mark.parametrize("magnitude", [[0.0, 0.0], [2.0, 2.0], [-1.0, 3.0], [1.0]])
def test_odd_scores_give_a_page(tmp_path: Path, magnitude: list[float]) -> None:
    n = len(magnitude)
    Scores(-np.array(magnitude), np.full(n, np.nan), np.arange(n)).save(tmp_path / "s.npz")
    write(tmp_path / "s.npz", tmp_path / "r.html")
    assert "</html>" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("spread", [1e-12, 1e-9, 1e-7, 1e-4])
def test_scores_that_nearly_agree_have_a_chart(tmp_path: Path, spread: float) -> None:
    Scores(-5 - spread * np.arange(30), np.zeros(30), np.arange(30)).save(tmp_path / "s.npz")
    write(tmp_path / "s.npz", tmp_path / "r.html", json=tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())["distribution"]
    assert sum(found["counts"]) == 30
    assert len(set(found["edges"])) == len(found["edges"])


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    provenance = {"draws": 2, "reliability": math.nan, "other": [math.inf, 1.0]}
    Scores(-np.arange(1.0, 9), np.ones(8), np.arange(8), None, provenance).save(tmp_path / "s.npz")
    write(tmp_path / "s.npz", tmp_path / "r.html", json=tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["summary"]["reliability"] is None
    assert found["settings"]["other"] == [None, 1.0]


def test_a_column_of_paths_comes_before_one_of_names(tmp_path: Path) -> None:
    """And a number that is the same for most images has no quartiles to cut it at."""
    scores = save(scored(100), tmp_path / "s.parquet")
    rows = [f"{'ab'[i % 2]}/{i:05}.png,{'cdog'[i % 3]},{max(0, i - 80)}" for i in range(100)]
    (tmp_path / "t.csv").write_text("path,name,count\n" + "\n".join(rows))
    write(scores, tmp_path / "r.html", None, tmp_path / "t.csv", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())["breakdown"]
    assert [column["column"] for column in found["columns"]] == ["name"]
    assert found["left_out"] == [{"column": "count", "reason": "0 for most images"}]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_of_other_programs_are_joined(tmp_path: Path, separator: str) -> None:
    """Semicolons or tabs, another name of the column, and the slashes of Windows."""
    scores = save(scored(100), tmp_path / "s.parquet")
    rows = [f"{'cdog'[i % 3]}{separator}{'ab'[i % 2]}\\{i:05}.png" for i in range(100)]
    (tmp_path / "t.csv").write_text(f"kind{separator}image_path\n" + "\n".join(rows))
    write(scores, tmp_path / "r.html", None, tmp_path / "t.csv", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())["breakdown"]
    assert [column["column"] for column in found["columns"]] == ["kind"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no file", "nothing.csv"),
        ("not finite", "row 3 is not finite"),
        ("other images", "holds none of the images"),
        ("other table", "names none of the images"),
        ("no paths", "no column of paths"),
        ("twice", "twice"),
        ("no names", "has no names"),
        ("no folder", "cannot be written"),
        ("onto itself", "overwrite"),
        ("text", "holds a value that is not a number"),
        ("group 0", "groups are numbered from 1"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(tmp_path: Path, case: str, words: str) -> None:
    table, images, labels, out = scored(20), None, None, tmp_path / "out" / "r.html"
    out.parent.mkdir()
    if case == "not finite":
        table.loc[3, "score"] = np.nan
    if case == "no names":
        table = table.drop(columns="name")
    if case == "text":
        table["loss"] = "much"
    if case == "group 0":
        table["duplicate_group"] -= 1
    scores = save(table, tmp_path / "s.parquet")
    if case == "no file":
        scores = tmp_path / "nothing.csv"
    if case in ("other images", "no names"):
        images = tmp_path / "images"
        images.mkdir()
        Image.new("RGB", (8, 8)).save(images / "other.png")
    rows = {"other table": "path,x\nz.png,1\n", "no paths": "a,b\n1,2\n"}
    rows["twice"] = "path,x\na/00000.png,1\na/00000.png,2\n"
    if case in rows:
        labels = tmp_path / "labels.csv"
        labels.write_text(rows[case])
    if case == "no folder":
        out = tmp_path / "nowhere" / "r.html"
    if case == "onto itself":
        out = scores
    with pytest.raises(InfluenceError, match=re.escape(words)) as caught:
        write(scores, out, images, labels)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("provenance", "words"),
    [
        ({"untrained": True, "draws": 4, "reliability": 0.97}, "The encoder has random weights"),
        ({"draws": 4, "reliability": 0.77}, "rank correlation of about 0.77"),
        ({"draws": 1}, "one draw of the perturbation"),
        ({"draws": 4, "reliability": 0.9}, None),
    ],
)
def test_what_makes_the_rest_worthless_comes_first(
    tmp_path: Path, provenance: dict[str, Any], words: str | None
) -> None:
    scores = save(scored(), tmp_path / "s.parquet", provenance)
    write(scores, tmp_path / "r.html", json=tmp_path / "r.json")
    alerts = json.loads((tmp_path / "r.json").read_text())["alerts"]
    assert len(alerts) == (words is not None)
    page = (tmp_path / "r.html").read_text()
    assert page.count('class="alert"') == len(alerts)
    assert all(words in alert and page.index(words) < page.index("<nav") for alert in alerts)


def test_the_first_screen_has_numbers_pictures_and_the_next_command(made: Path) -> None:
    page = (made / "report.html").read_text()
    first = page[page.index('id="found"') : page.index('id="meaning"')]
    assert first.index("duplicate groups") < first.index("reliability") < first.index("<img")
    assert "influence-ssl select scores.parquet --drop-duplicates --out keep.txt" in first
    titles = re.findall(r'<ul class="gallery" aria-label="([^"]+)">(.*?)</ul>', first, re.S)
    assert [title.split(",")[0] for title, _ in titles] == [
        "Duplicates", "Far from the others", "Highest influence", "Lowest influence",
    ]  # fmt: skip
    assert all(1 <= gallery.count('class="card"') <= 6 for _, gallery in titles)
    assert "nearest at 0.100" in titles[1][1]


def test_the_page_of_a_large_set_holds_what_fits_and_the_rest_stands_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, places = 3000, 400
    table = scored(n)
    table.loc[1500:1502, "duplicate_group"] = 9
    source = save(table, tmp_path / "s.parquet")
    assert write(source, tmp_path / "whole.html") is None
    monkeypatch.setattr("influence_ssl.report.rows.ROWS", places)
    every = write(source, tmp_path / "r.html", json=tmp_path / "r.json")
    assert every == tmp_path / "r.rows.csv"
    ranks = table.set_index("name")["rank"]
    written = pandas.read_csv(every)
    assert dict(zip(written["name"], written["rank"], strict=True)) == ranks.to_dict()
    page = (tmp_path / "r.html").read_text()
    assert re.search(rf"contains (399|400) of {n:,} rows", page)
    assert "r.rows.csv" in page

    def held(page: str) -> dict[str, list[Any]]:
        rows = json.loads(re.search(r'id="rows">(.*?)</script>', page).group(1))
        return {c["key"]: values for c, values in zip(rows["columns"], rows["values"], strict=True)}

    rows = held(page)
    assert places - 1 <= len(rows["rank"]) <= places
    assert rows["rank"] == sorted(rows["rank"])
    assert {*range(1, 101), *range(n - 99, n + 1)} <= {*rows["rank"]}
    assert {*table["name"][1500:1503]} <= {*rows["name"]}
    subsets = json.loads(re.search(r'id="subsets">(.*?)</script>', page).group(1))
    outliers = json.loads((tmp_path / "r.json").read_text())["outliers"]["shown"]
    assert [rows["name"][row] for row in subsets["outliers"]][: len(outliers)] == [
        entry["name"] for entry in outliers
    ]
    # Long names take their bytes from the number of rows.
    monkeypatch.setattr("influence_ssl.report.rows.BYTES", 20_000)
    write(source, tmp_path / "r.html")
    rows = (tmp_path / "r.html").read_text()
    assert 20 < len(held(rows)["rank"]) < places
    assert len(re.search(r'id="rows">(.*?)</script>', rows).group(1)) < 21_000


def test_a_page_of_any_set_stays_below_20_megabytes() -> None:
    """All the rows that fit, and pictures of noise, which no other picture of the size exceeds."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    uri, *_ = _thumbnail(Image.fromarray(noise))
    # Each outlier has its neighbour beside it, and the first of each finding stand twice.
    shown = 2 * GALLERY + 2 * GALLERY + GROUPS * MEMBERS + 5 * FIRST
    assert BYTES + shown * len(uri) < 19_500_000


def test_the_map_is_the_principal_components_of_unit_representations() -> None:
    z = np.random.default_rng(0).normal(size=(80, 6)) * np.arange(1, 7)
    expected = PCA(2, svd_solver="full")
    coordinates = expected.fit_transform(z / np.linalg.norm(z, axis=1, keepdims=True))
    found = plane(z.astype(np.float32))
    signs = np.sign((found.points * coordinates).sum(0))
    np.testing.assert_allclose(found.points * signs, coordinates, atol=1e-6)
    np.testing.assert_allclose(found.shares, expected.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(plane(-z).points, -found.points, atol=1e-6)
