"""The report's page in a headless Chromium, opened from disk as a reader would."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas
import pytest
from reports import digests, make, save, scored

from influence_ssl.errors import InfluenceError
from influence_ssl.report.html import write

MANY = 50_000
WHITE = "rgb(255, 255, 255)"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def content(made: Path) -> dict[str, Any]:
    return json.loads((made / "report.json").read_text())


def opened(chromium: Any, path: Path, **options: Any) -> Any:
    page = chromium.new_context(
        **{"viewport": {"width": 1280, "height": 900}, **options}
    ).new_page()
    page.complaints = []

    def asked(request: Any) -> None:
        if urlsplit(request.url).scheme not in ("data", "blob") and request.url != path.as_uri():
            page.complaints.append(request.url)

    page.on("request", asked)
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(path.as_uri())
    return page


def processor_time(page: Any) -> Callable[[], float]:
    """The processor seconds of the page's own process so far, which other work does not add to."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def seconds() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "ProcessTime")

    return seconds


def column(page: Any, title: str) -> list[str]:
    """The visible cells of a column of the table of all images."""
    return page.evaluate(
        """title => {
            const table = document.getElementById("table");
            const c = [...table.tHead.rows[0].cells].findIndex(h => h.textContent === title);
            return [...table.tBodies[0].querySelectorAll("tr:not(.space)")]
                .map(row => row.cells[c].textContent);
        }""",
        title,
    )


def status(page: Any) -> str:
    return page.inner_text("#status")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_is_quiet_accessible_and_fits(
    chromium: Any, made: Path, scheme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    size = {"width": width, "height": 850}
    page = opened(
        chromium, made / "report.html", color_scheme=scheme, viewport=size, is_mobile=width < 500
    )
    grounds = {"light": WHITE, "dark": "rgb(20, 23, 26)"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[scheme]
    found = Axe().run(page).response["violations"]
    assert [(v["id"], n["html"][:120]) for v in found for n in v["nodes"]] == []
    assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
    assert page.complaints == []
    page.context.close()


def test_page_asks_for_nothing(made: Path) -> None:
    page = (made / "report.html").read_text()
    assert re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", page) == []
    assert "http" not in page.replace("http-equiv", "")
    # All but the one that the dialog fills.
    assert page.count("<img") - 1 == page.count('loading="lazy"') > 48


def test_without_images_no_pixel_of_them_leaves(chromium: Any, made: Path, tmp_path: Path) -> None:
    """Nothing that could hold pixels: no picture, no data address, no long code."""
    table = scored(60)
    source = save(table, made / "alone.parquet")
    z = np.random.default_rng(0).normal(size=(60, 4))
    out = tmp_path / "r.html"
    drawn = (table["name"].tolist(), z, table["score"].to_numpy())
    write(source, out, None, made / "labels.csv", tmp_path / "r.json", drawn)
    for path in (out, tmp_path / "r.json"):
        text = path.read_text()
        assert "data:image" not in text
        assert "base64" not in text
        assert re.findall(r"[A-Za-z0-9+/=]{100,}", text) == []
    page = opened(chromium, out)
    assert page.evaluate("[...document.images].filter(i => i.src).length") == 0
    assert "no pictures" in page.inner_text("footer")
    page.goto((made / "report.html").as_uri())
    labels = page.locator("button.enlarge").evaluate_all("all => all.map(b => b.ariaLabel)")
    names = {label.removeprefix("Enlarge ").split(", nearest")[0] for label in labels}
    assert f"small pictures of {len(names)} images" in page.inner_text("footer")
    page.context.close()


def test_json_is_what_the_page_shows(chromium: Any, made: Path, content: dict[str, Any]) -> None:
    page = opened(chromium, made / "report.html")
    embedded = json.loads(page.text_content("#rows"))
    assert embedded == content["rows"]
    for key in ("highest", "lowest"):
        names = [entry["name"] for entry in content[key]]
        assert page.locator(f"#{key} .name").all_inner_texts() == names
    reasons = [group["reason"] for group in content["groups"]["shown"]]
    assert page.locator("#duplicates article > p").all_inner_texts() == reasons
    shown = page.locator("#outliers .name").all_inner_texts()
    assert shown == [entry["name"] for entry in content["outliers"]["shown"]]
    for c, found in enumerate(content["breakdown"]["columns"]):
        table = page.locator("#breakdown table").nth(c)
        assert table.locator("thead th").first.inner_text() == found["column"]
        cells = [[cell.inner_text() for cell in row.locator("th, td").all()]
                 for row in table.locator("tbody tr").all()]  # fmt: skip
        expected = [
            [
                row["value"],
                str(row["images"]),
                f"{100 * row['base_rate']:.1f}\N{NO-BREAK SPACE}%",
                str(row["in_top"]),
            ]
            for row in found["values"]
        ]
        assert [row[:4] for row in cells] == expected
    assert column(page, "Image")[:5] == content["rows"]["values"][1][:5]
    page.context.close()


def test_headings_sort_and_say_so(chromium: Any, made: Path) -> None:
    page = opened(chromium, made / "report.html")
    table = scored()
    heading = page.get_by_role("columnheader", name="Loss")
    assert page.locator("th[aria-sort]").inner_text() == "Rank"
    for direction in ("ascending", "descending"):
        heading.get_by_role("button").click()
        assert page.locator("th[aria-sort]").count() == 1
        assert heading.get_attribute("aria-sort") == direction
        expected = table["loss"].sort_values(ascending=direction == "ascending")[:10]
        assert [float(x) for x in column(page, "Loss")[:10]] == pytest.approx(
            expected.tolist(), rel=1e-5
        )
        assert status(page) == f"300 of 300 images, sorted by Loss, {direction}"
    # What is not there comes last in both orders.
    for _ in range(2):
        page.get_by_role("button", name="Group", exact=True).click()
        assert [value != "" for value in column(page, "Group")[:6]] == [True] * 5 + [False]
    page.context.close()


def test_filters_by_words_subset_and_range(chromium: Any, made: Path) -> None:
    page = opened(chromium, made / "report.html")
    table = scored()
    page.fill("#search", "B/ rare")
    page.wait_for_function("!document.getElementById('status').textContent.startsWith('300')")
    assert set(column(page, "group <b>")) == {"rare"}
    assert status(page).startswith("50 of 300 images")
    page.get_by_role("button", name="Clear").click()
    page.wait_for_function("document.getElementById('status').textContent.startsWith('300')")
    for subset, count in (("groups", 5), ("top", 30)):
        page.select_option("#subset", subset)
        page.wait_for_function(
            f"document.getElementById('status').textContent.startsWith('{count} of')"
        )
    page.select_option("#subset", "all")
    page.select_option("#column", label="Similarity")
    page.fill("#from", "0.6")
    page.fill("#to", "0.7")
    expected = int(table["similarity"].between(0.6, 0.7).sum())
    page.wait_for_function(
        f"document.getElementById('status').textContent.startsWith('{expected} of')"
    )
    assert all(0.6 <= float(value) <= 0.7 for value in column(page, "Similarity"))
    page.fill("#search", "no such words")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('0 of')")
    assert column(page, "Image") == []
    assert page.complaints == []
    page.context.close()


def test_keyboard_reaches_sorts_and_scrolls(chromium: Any, made: Path) -> None:
    page = opened(chromium, made / "report.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    visited = []
    for _ in range(12):
        page.keyboard.press("Tab")
        visited.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    assert visited[:7] == ["search", "subset", "column", "from", "to", "Clear", "viewport"]
    assert visited[7:9] == ["Rank", "Image"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.focus("#table button >> nth=1")
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").inner_text() == "Image"
    assert column(page, "Image")[0] == "a/00000.png"
    page.focus("#viewport")
    page.keyboard.press("End")
    page.get_by_role("cell", name="b/00299.png").first.wait_for()
    # Rows come and go while the table still scrolls.
    last = "document.querySelector('#table tbody tr:last-child').ariaRowIndex"
    page.wait_for_function(f"{last} === '301'")
    page.context.close()


def test_names_cannot_break_the_page(chromium: Any, tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>.png"
    names = [evil, '"quoted" & {{ 7 * 7 }}.png', "ü \N{SNOWMAN}.png", *(f"{i}" for i in range(17))]
    write(save(scored(20, names), tmp_path / "s.parquet"), tmp_path / "r.html")
    page = opened(chromium, tmp_path / "r.html")
    assert {*names[:3]} <= {*column(page, "Image")}
    assert page.locator("main img").count() == 0
    assert page.complaints == []
    page.context.close()


def test_fifty_thousand_rows_open_at_once(chromium: Any, tmp_path: Path) -> None:
    write(save(scored(MANY), tmp_path / "s.parquet"), tmp_path / "r.html")
    page = opened(chromium, tmp_path / "r.html")
    clock = processor_time(page)
    page.wait_for_function("document.getElementById('status').textContent.startsWith('50,000')")
    assert len(column(page, "Image")) < 100
    assert 0 < (loaded := clock()) < 3
    page.evaluate("document.querySelectorAll('#table button')[1].click()")
    assert clock() - loaded < 3
    assert column(page, "Image")[0] == "a/00000.png"
    page.evaluate("document.getElementById('viewport').scrollTop = 1e9")
    page.get_by_role("cell", name="b/49999.png").first.wait_for()
    assert page.complaints == []
    page.context.close()


def test_a_picture_enlarges_and_the_keyboard_closes_it(chromium: Any, made: Path) -> None:
    page = opened(chromium, made / "report.html")
    card = page.locator("#highest .card").filter(has=page.locator("button.enlarge")).first
    name, button = card.locator(".name").inner_text(), card.locator("button.enlarge")
    small = button.locator("img").bounding_box()["height"]
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name=name)
    dialog.wait_for()
    picture = dialog.get_by_role("img", name=name)
    assert picture.get_attribute("src") == button.locator("img").get_attribute("src")
    assert picture.bounding_box()["height"] > 2 * small
    assert "rank" in page.inner_text("#large-facts")
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Enlarge {name}"
    button.click()
    dialog.get_by_role("button", name="Close").click()
    dialog.wait_for(state="hidden")
    assert page.complaints == []
    page.context.close()


def test_outliers_stand_beside_their_nearest_image(
    chromium: Any, made: Path, content: dict[str, Any]
) -> None:
    page = opened(chromium, made / "report.html")
    entry = content["outliers"]["shown"][0]
    beside = page.locator("#outliers .card").first.locator(".beside")
    assert beside.locator(".neighbour").inner_text() == entry["nearest"] == "a/00008.png"
    beside.get_by_role("button").click()
    page.get_by_role("dialog", name=entry["nearest"]).wait_for()
    page.context.close()


def test_three_hundred_images_print_on_six_pages(chromium: Any, made: Path, tmp_path: Path) -> None:
    """With 31 groups of two to nine images and two columns of labels."""
    table, rng = scored(), np.random.default_rng(2)
    sizes = [2 + 5 * k % 8 for k in range(31)]
    table["duplicate_group"] = [*np.repeat(range(1, 32), sizes), *[None] * (300 - sum(sizes))]
    # Each outlier stands with its neighbour, which takes the most room.
    top = table["rank"] <= 15
    table.loc[top, "similarity"] = 0.2 + 0.01 * rng.random(15)
    labels = pandas.DataFrame(
        {
            "path": table["name"],
            "class": rng.choice([f"class {k}" for k in range(20)], 300),
            "split": rng.choice(["train", "test"], 300),
        }
    )
    labels.to_csv(tmp_path / "labels.csv", index=False)
    table["sha256"] = digests(made / "images", table["name"])
    source = save(table, tmp_path / "s.parquet", {"draws": 2, "reliability": 0.8})
    out = tmp_path / "r.html"
    write(source, out, made / "images", tmp_path / "labels.csv", tmp_path / "r.json")
    # A4 less its margins, in CSS pixels.
    paper = {"width": int((210 - 24) / 25.4 * 96), "height": 1030}
    page = opened(chromium, out, viewport=paper, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == WHITE
    assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
    groups = json.loads((tmp_path / "r.json").read_text())["groups"]["shown"]
    assert len(groups) == 31
    for k, (group, article) in enumerate(
        zip(groups, page.locator("article.group").all(), strict=True)
    ):
        names = [member["name"] for member in group["members"]]
        assert article.locator(".name").all_inner_texts() == names
        visible = article.evaluate(
            "article => [...article.querySelectorAll('img')].filter(i => i.offsetWidth).length"
        )
        assert visible == (min(4, len(names)) if k < 12 else 0)
    assert (
        page.locator(".paper")
        .inner_text()
        .startswith("In print, the first 12 groups have pictures")
    )
    printed = page.pdf(format="A4", prefer_css_page_size=True)
    assert len(re.findall(rb"/Type /Page\b", printed)) <= 6
    # Chromium loads what was not yet in view before it prints.
    assert page.evaluate("[...document.images].filter(i => i.src && !i.naturalWidth).length") == 0
    page.context.close()


@pytest.fixture(scope="module")
def mapped(made: Path) -> Path:
    """A report with a map: 60 images in two clusters, 20 of them far to the left."""
    table = scored(60)
    z = np.random.default_rng(0).normal(size=(60, 4)) * 0.02 + [1, 0, 0, 0]
    z[:20] += [-2, 0, 0, 0]
    # The largest entry of an axis is positive: the 40 lie to the right.
    source = save(table, made / "mapped.parquet")
    kept = (part[::-1] for part in (table["name"].tolist(), z, table["score"].to_numpy()))
    write(source, made / "mapped.html", representations=tuple(kept))
    return made / "mapped.html"


def test_a_lasso_on_the_map_selects_and_the_names_are_saved(chromium: Any, mapped: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(chromium, mapped)
    left = {f"{'ab'[i % 2]}/{i:05}.png" for i in range(20)}
    assert page.get_by_role("button", name="Save the names").is_disabled()
    page.locator("#plane").scroll_into_view_if_needed()
    box = page.locator("#plane").bounding_box()
    x, y, width, height = (box[key] for key in ("x", "y", "width", "height"))
    page.mouse.move(x + 1, y + 1)
    page.mouse.down()
    for across, down in ((0.5, 0), (0.5, 1), (0, 1)):
        page.mouse.move(x + 1 + across * (width - 2), y + 1 + down * (height - 2), steps=4)
    page.mouse.up()
    assert page.inner_text("#selected") == "20 images are selected."
    assert {*page.locator("#names li").all_inner_texts()} == left
    with page.expect_download() as caught:
        page.get_by_role("button", name="Save the names").click()
    assert {*caught.value.path().read_text().splitlines()} == left
    assert Axe().run(page).response["violations"] == []
    page.get_by_role("button", name="Clear the selection").click()
    assert page.inner_text("#selected") == "No image is selected."
    # The empty list has no frame.
    assert page.locator(".names").is_hidden()
    page.select_option("#column", label="Rank")
    page.fill("#to", "1")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('1 of')")
    page.get_by_role("button", name="Select the rows of the table").click()
    assert page.inner_text("#selected") == "1 image is selected."
    page.get_by_role("button", name="Clear the selection").click()
    # By keyboard: the same 20 by the range of a column.
    page.select_option("#column", label="Map x")
    page.fill("#to", "0")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('20 of')")
    page.focus("#take")
    page.keyboard.press("Enter")
    assert {*page.locator("#names li").all_inner_texts()} == left
    assert page.complaints == []
    page.context.close()


def test_representations_of_another_run_are_refused(made: Path) -> None:
    source = save(scored(60), made / "other.parquet")
    with pytest.raises(InfluenceError, match=r"no representation of 'b/00007\.png'"):
        write(source, made / "o.html", representations=(["x"], np.ones((1, 4)), np.ones(1)))
    table, z = scored(60), np.ones((60, 4))
    table.loc[7, "score"] *= 1.001
    kept = table["name"].tolist(), z, table["score"].to_numpy()
    with pytest.raises(
        InfluenceError, match=r"different scores for 1 of 60 images, 'b/00007\.png'"
    ):
        write(source, made / "o.html", representations=kept)
