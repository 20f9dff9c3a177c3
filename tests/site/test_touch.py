"""The pictures that answer back: driven in a browser, and held to NumPy and to their chapters."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from influence_lab.theory import linear_network as net
from pages import HOMES, ROOT, SITE
from test_browser import DESKTOP, PHONE, address, load, opened, overflow, violations, window

pytestmark = pytest.mark.usefixtures("built_site")
RESULTS = ROOT / "book/results/cpu"


def given(view: Any, name: str) -> Any:
    """The numbers that the chapter's cell put into the page."""
    return json.loads(view.locator(f"#{name}-data").inner_text())


def value(view: Any, selector: str) -> float:
    """A shown number, exactly."""
    return float(view.locator(selector).get_attribute("value"))


@pytest.fixture
def drag(chromium: Any) -> Iterator[Any]:
    with opened(chromium, address(HOMES["drag"]), viewport=DESKTOP) as view:
        yield view
        assert view.complaints == []


def by_definition(inputs: Any, targets: Any, m: int) -> dict[str, float]:
    """Leverage from the hat matrix; Cook's distance and the other line from a second fit."""
    x, y = np.stack([np.ones_like(inputs), inputs], axis=1), targets
    n, p = x.shape
    theta, keep = np.linalg.lstsq(x, y)[0], np.arange(n) != m
    without = np.linalg.lstsq(x[keep], y[keep])[0]
    residual = y - x @ theta
    hessian = x.T @ x / n
    variance = residual @ residual / (n - p)
    return {
        "h": (x @ np.linalg.pinv(x))[m, m],
        "r": residual[m],
        "score": residual[m] ** 2 * x[m] @ np.linalg.inv(hessian) @ x[m],
        "cook": ((x @ (theta - without)) ** 2).sum() / (p * variance),
        "slope": theta[1],
        "slope-without": without[1],
    }


def at_rest(view: Any, target: Any) -> Any:
    """The box of ``target`` in the window, once that has stopped scrolling and laying out."""
    target.scroll_into_view_if_needed()
    before = None
    while (box := target.bounding_box()) != before:
        before = box
        view.wait_for_timeout(100)
    return box


def shown(view: Any, name: str) -> dict[str, float]:
    row = f'#touch-drag tr[data-point="{name}"] .touch-'
    found = {key: value(view, row + key) for key in ("h", "r", "score", "cook")}
    slopes = ("slope", "slope-without")
    return found | {key: value(view, f"#touch-drag .touch-{key}") for key in slopes}


def test_the_points_start_where_the_chapter_prints_them(drag: Any) -> None:
    printed = (ROOT / "tests/notebooks/foundations/one-example.txt").read_text("utf-8")
    rows = re.findall(
        r"^ *([ABC]): \w+ +([\d.]+) +([-+][\d.]+) +([\d.]+) +([\d.]+)$", printed, re.M
    )
    assert len(rows) == 3
    for name, *numbers in rows:
        cells = drag.locator(f'#touch-drag tr[data-point="{name}"] td').all_inner_texts()
        assert [cell.replace("−", "-") for cell in cells] == numbers


def test_keys_move_a_point_and_everything_is_fitted_again(drag: Any) -> None:
    data = given(drag, "drag")
    inputs, targets = np.array(data["inputs"]), np.array(data["targets"])
    point = drag.get_by_role("slider", name="Point A")
    before = point.get_attribute("aria-valuetext")
    point.focus()
    for key in ("Shift+ArrowDown", "Shift+ArrowDown", "ArrowDown", "ArrowLeft", "Shift+ArrowUp"):
        point.press(key)
    inputs[60] -= 0.1
    targets[60] -= 0.6
    assert shown(drag, "A") == pytest.approx(by_definition(inputs, targets, 60), rel=1e-9)
    assert point.get_attribute("aria-valuetext") != before
    assert "input 3.90, target 1.40" in point.get_attribute("aria-valuetext")
    # Below the line the bar goes up from the point, and the letter gives way.
    for _ in range(5):
        point.press("Shift+ArrowDown")
    boxes = "all => all.map(e => e.getBoundingClientRect()).map(b => [b.top, b.bottom])"
    bar, letter = drag.locator("#touch-drag .touch-gap, .touch-chosen text").evaluate_all(boxes)
    assert letter[0] >= bar[1] or letter[1] <= bar[0]


def test_a_point_follows_the_pointer_and_goes_back(drag: Any) -> None:
    data = given(drag, "drag")
    inputs, targets = np.array(data["inputs"]), np.array(data["targets"])
    drag.get_by_role("button", name="Put the points back").click()
    point = drag.get_by_role("slider", name="Point C")
    box = at_rest(drag, point.locator("rect"))
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    drag.mouse.move(x, y)
    drag.mouse.down()
    drag.mouse.move(x + 40, y - 80, steps=3)
    drag.mouse.up()
    place = re.search(r"input (\S+), target (\S+),", point.get_attribute("aria-valuetext"))
    inputs[62], targets[62] = (float(number.replace("−", "-")) for number in place.groups())
    assert inputs[62] > data["inputs"][62] + 0.2
    assert targets[62] > data["targets"][62] + 0.5
    assert shown(drag, "C") == pytest.approx(by_definition(inputs, targets, 62), rel=1e-9)
    drag.get_by_role("button", name="Put the points back").click()
    start = by_definition(np.array(data["inputs"]), np.array(data["targets"]), 62)
    assert shown(drag, "C") == pytest.approx(start, rel=1e-9)


@pytest.fixture
def damping(chromium: Any) -> Iterator[Any]:
    with opened(chromium, address(HOMES["damping"]), viewport=DESKTOP) as view:
        yield view
        assert view.complaints == []


def the_chapters_gradients() -> Any:
    """The gradients of fig-leverage-damping, from the data that its caption states."""
    rng = np.random.default_rng(84)
    w, deltas = rng.normal(size=(4, 6)), rng.normal(size=(60, 6))
    return np.array([net.loss_gradient(w, delta, 0.5).ravel() for delta in deltas])


def by_inverse(gradients: Any, damping: float) -> dict[str, float]:
    """Scores from the inverse of the damped curvature, ranks by SciPy."""
    n, p = gradients.shape
    fisher = gradients.T @ gradients / n
    inverse = np.linalg.inv(fisher + damping * np.eye(p))
    score = np.einsum("ni,ij,nj->n", gradients, inverse, gradients)
    leverage = np.diagonal(gradients @ np.linalg.pinv(gradients))
    norm = (gradients**2).sum(1)
    ranks = np.argsort(np.argsort(-score))
    by_leverage, by_norm = (np.argsort(np.argsort(-one)) for one in (leverage, norm))
    marked = (by_norm - by_leverage).argmax()
    return {
        "lambda": damping,
        "dimension": np.trace(inverse @ fisher),
        "with-leverage": spearmanr(score, leverage).statistic,
        "with-norm": spearmanr(score, norm).statistic,
        "rank": ranks[marked] + 1,
        "score": score[marked],
    }


def test_damping_slides_the_ranking_between_its_ends(damping: Any) -> None:
    gradients = the_chapters_gradients()
    slider = damping.get_by_role("slider", name="damping")
    ranks = []
    for key in ("", "ArrowRight", "Home", "End"):
        if key:
            slider.press(key)
        expected = by_inverse(gradients, value(damping, "#touch-damping .touch-lambda"))
        found = {key: value(damping, f"#touch-damping .touch-{key}") for key in expected}
        assert found == pytest.approx(expected, rel=1e-5)
        assert f"has rank {expected['rank']}" in slider.get_attribute("aria-valuetext")
        ranks.append(found["rank"])
    assert value(damping, "#touch-damping .touch-lambda") == 1e3
    assert ranks[3] > ranks[2] + 5
    assert found["with-norm"] > 0.999


def test_another_example_can_be_marked(damping: Any) -> None:
    gradients = the_chapters_gradients()
    leverage = np.diagonal(gradients @ np.linalg.pinv(gradients))
    first = leverage.argmax()
    damping.get_by_role("slider", name="marked example").press("Home")
    lam = value(damping, "#touch-damping .touch-lambda")
    inverse = np.linalg.inv(gradients.T @ gradients / 60 + lam * np.eye(24))
    expected = gradients[first] @ inverse @ gradients[first]
    assert value(damping, "#touch-damping .touch-score") == pytest.approx(expected, rel=1e-5)


def test_a_query_shows_what_is_recorded_of_it(chromium: Any) -> None:
    record = json.loads((RESULTS / "traces.json").read_text("utf-8"))["shown"]
    with opened(chromium, address(HOMES["trace"]), viewport=DESKTOP) as view:
        place = view.locator("#touch-trace")
        choices = place.get_by_role("radio")
        assert choices.count() == len(record)
        seen = []
        for k, row in enumerate(record):
            # Arrow keys go from one choice to the next.
            choices.first.focus() if k == 0 else view.keyboard.press("ArrowDown")
            assert choices.nth(k).is_checked()
            values = place.locator(".touch-influence").evaluate_all("all => all.map(e => e.value)")
            assert [float(one) for one in values] == row["influence"]
            images = place.locator("li [role=img]")
            names = images.evaluate_all("all => all.map(e => e.ariaLabel)")
            assert names == row["classes"]
            helps, near = set(row["positions"][1:4]), set(row["positions"][7:10])
            assert value(view, "#touch-trace .touch-near") == len(helps & near)
            same = row["classes"][:3].count(row["class"])
            assert value(view, "#touch-trace .touch-same-class") == same
            assert row["kind"] in place.get_by_role("status").inner_text()
            seen.append(values)
        assert len({tuple(values) for values in seen}) == len(record)
        assert view.complaints == []


@pytest.fixture
def explorer(chromium: Any) -> Iterator[Any]:
    with opened(chromium, address(HOMES["explorer"]), viewport=DESKTOP) as view:
        yield view
        assert view.complaints == []


@pytest.fixture(scope="module")
def explored() -> dict[str, dict[str, Any]]:
    """From the files of records, by method: the score and its rivals, of the images shown."""
    record = json.loads((RESULTS / "explorer.json").read_text("utf-8"))
    every = np.random.default_rng(0).permutation(record["of"])
    shown = np.isin(np.sort(every[:5000]), every[:2000])
    with np.load(RESULTS / "explorer.npz") as file:
        border, distance = file["border"], file["distance"]
    found = {}
    for method, far in zip(record["methods"], distance, strict=True):
        with np.load(RESULTS / f"{method}-0" / "vectors.npz") as file:
            codes, ends = file["codes"], file["ends"]
            names = [json.loads(name) for name in json.loads(str(file["written"]))["vectors"]]
        noise = {"kind": "GaussianNoise", "mean": 0.05, "std": 0.2}
        found[method] = {"distance": far, "border": border}
        for kind in ("score", "loss", "gradient norm"):
            k = names.index({"quantity": kind, "perturbation": noise, "noise seed": 0})
            step = (ends[k, 1] - ends[k, 0]) / 4094
            found[method][kind] = np.exp(ends[k, 0] + (codes[k] - 1.0) * step)[shown]
    return found


def expected(values: dict[str, Any], rival: str, place: int) -> dict[str, float]:
    """What the explorer has to show of the image at a place in the score's order."""
    order, other = (np.argsort(values[name], kind="stable") for name in ("score", rival))
    image, start = order[place], min(max(place - 50, 0), 1900)
    return {
        "score": values["score"][image],
        "rival": values[rival][image],
        "score-percentile": (place + 0.5) / 20,
        "rival-percentile": (list(other).index(image) + 0.5) / 20,
        "shared": len({*order[start : start + 100]} & {*other[start : start + 100]}),
        "correlation": spearmanr(values["score"], values[rival]).statistic,
    }


def of_the_explorer(view: Any) -> dict[str, float]:
    names = ("score", "rival", "score-percentile", "rival-percentile", "shared", "correlation")
    return {name: value(view, f"#touch-explorer data.touch-{name}") for name in names}


def near(values: dict[str, float]) -> Any:
    # The page has single precision, the record four digits of a correlation.
    return pytest.approx(values, rel=1e-6, abs=6e-5)


def test_the_explorer_shows_the_recorded_numbers(explorer: Any, explored: Any) -> None:
    place = explorer.locator("#touch-explorer")
    slider = place.get_by_role("slider", name="score percentile")
    at = 1999
    for method, values in explored.items():
        place.locator(f"input[value={method}]").check()
        for rival in ("loss", "gradient norm", "distance", "border"):
            place.locator(f'input[value="{rival}"]').check()
            assert of_the_explorer(explorer) == near(expected(values, rival, at))
            slider.press("ArrowLeft")
            at -= 1
        slider.press("PageDown")
        at = int(slider.input_value()) - 1
    slider.press("Home")
    assert of_the_explorer(explorer) == near(expected(values, "border", 0))
    assert slider.get_attribute("aria-valuetext").startswith("percentile 0.0 by score: ")


def test_the_explorer_is_given_what_is_recorded(explorer: Any, explored: Any) -> None:
    data = given(explorer, "explorer")
    assert list(data["methods"]) == list(explored) == ["simclr", "byol", "barlow", "supervised"]
    for method, values in explored.items():
        packed = data["methods"][method]["values"] | {"border": data["border"]}
        assert packed.keys() == values.keys()
        for name, text in packed.items():
            numbers = np.frombuffer(base64.b64decode(text), "<f4")
            np.testing.assert_allclose(numbers, values[name], rtol=1e-6)


def test_pointing_shows_an_image_and_a_click_chooses_it(explorer: Any, explored: Any) -> None:
    place = explorer.locator("#touch-explorer")
    place.locator("input[value=simclr]").check()
    place.locator("input[value=loss]").check()
    values = explored["simclr"]
    lowest = int(np.argsort(values["score"], kind="stable")[0])
    dots = place.locator("path.touch-all").get_attribute("d")
    x, y = (float(one) for one in dots.split("M")[1 + lowest].removesuffix("h0").split())
    points = place.locator("svg.touch-points")
    points.scroll_into_view_if_needed()
    points.hover(position={"x": x, "y": y})
    hint = place.locator(".touch-hint")
    name = json.loads((RESULTS / "explorer.json").read_text("utf-8"))["classes"]
    with np.load(RESULTS / "explorer.npz") as file:
        name = name[file["label"][lowest]]
    assert hint.inner_text() == f"{name}, percentile 0.0"
    points.click(position={"x": x, "y": y})
    assert of_the_explorer(explorer) == near(expected(values, "loss", 0))
    assert place.locator(".touch-image [role=img]").get_attribute("aria-label") == name
    assert place.locator(".touch-gallery li").count() == 24
    explorer.mouse.move(0, 0)
    assert hint.is_hidden()
    loaded = explorer.evaluate(
        "url => new Promise(done => { const i = new Image(); i.onload = () => done(i.width);"
        " i.onerror = () => done(0); i.src = url; })",
        place.locator("a.download").evaluate("link => link.href"),
    )
    assert loaded == 50 * 32


def test_the_first_page_leads_to_the_explorer(chromium: Any) -> None:
    with opened(chromium, address("book/intro.html"), viewport=DESKTOP) as view:
        view.get_by_role("link", name="Explore the scores").click()
        view.wait_for_url("**/loss.html#touch-explorer")
        assert view.locator("#touch-explorer").is_visible()
        assert view.complaints == []


FINGER = {"viewport": PHONE, "is_mobile": True, "has_touch": True}


def swipe(view: Any, target: Any, *steps: tuple[float, float]) -> None:
    """A finger put down in the middle of ``target`` and moved; Chromium makes the events of it."""
    box = at_rest(view, target)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = view.context.new_cdp_session(view)
    for kind, dx, dy in [("touchStart", 0, 0), *(("touchMove", *step) for step in steps)]:
        points = [{"x": x + dx, "y": y + dy}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_a_finger_moves_a_point(chromium: Any) -> None:
    with opened(chromium, address(HOMES["drag"]), **FINGER) as view:
        data = given(view, "drag")
        inputs, targets = np.array(data["inputs"]), np.array(data["targets"])
        point = view.get_by_role("slider", name="Point C")
        before = shown(view, "C")
        # The middle of the letter and the square together, away from the page's edges.
        swipe(view, point.locator("rect"), (10, -20), (20, -60))
        place = re.search(r"input (\S+), target (\S+),", point.get_attribute("aria-valuetext"))
        inputs[62], targets[62] = (float(number.replace("−", "-")) for number in place.groups())
        assert targets[62] > data["targets"][62] + 0.5
        assert shown(view, "C") != before
        assert shown(view, "C") == pytest.approx(by_definition(inputs, targets, 62), rel=1e-9)


def test_a_finger_turns_the_damping(chromium: Any) -> None:
    with opened(chromium, address(HOMES["damping"]), **FINGER) as view:
        slider = view.get_by_role("slider", name="damping")
        box = at_rest(view, slider)
        seen = []
        for share in (0.25, 0.75):
            view.touchscreen.tap(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
            lam = value(view, "#touch-damping .touch-lambda")
            found = by_inverse(the_chapters_gradients(), lam)["dimension"]
            dimension = value(view, "#touch-damping .touch-dimension")
            assert dimension == pytest.approx(found, rel=1e-5)
            seen.append(dimension)
        assert seen[0] > seen[1] + 1


def test_a_finger_chooses_a_query(chromium: Any) -> None:
    record = json.loads((RESULTS / "traces.json").read_text("utf-8"))["shown"]
    with opened(chromium, address(HOMES["trace"]), **FINGER) as view:
        for k in (3, 0):
            view.locator("#touch-trace .touch-choices label").nth(k).tap()
            first = view.locator("#touch-trace .touch-influence").first
            assert float(first.get_attribute("value")) == record[k]["influence"][0]


def test_a_finger_chooses_an_image(chromium: Any, explored: Any) -> None:
    with opened(chromium, address(HOMES["explorer"]), **FINGER) as view:
        place = view.locator("#touch-explorer")
        place.locator("label", has_text="border spread").tap()
        values, points = explored["simclr"], place.locator("svg.touch-points")
        assert of_the_explorer(view) == near(expected(values, "border", 1999))
        lowest = int(np.argsort(values["score"], kind="stable")[0])
        dots = place.locator("path.touch-all").get_attribute("d")
        x, y = (float(one) for one in dots.split("M")[1 + lowest].removesuffix("h0").split())
        points.tap(position={"x": x, "y": y})
        assert of_the_explorer(view) == near(expected(values, "border", 0))
        slider = place.get_by_role("slider")
        box = at_rest(view, slider)
        view.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        middle = int(slider.input_value()) - 1
        assert 900 < middle < 1100
        assert of_the_explorer(view) == near(expected(values, "border", middle))


CONTROLS = "button, [type=range], [role=slider], label:has([type=radio])"


def smallest(place: Any) -> float:
    """The shortest side of what can be met, of each control in a picture."""
    boxes = place.locator(CONTROLS).evaluate_all(
        "all => all.map(e => e.getBoundingClientRect()).map(b => Math.min(b.width, b.height))"
    )
    return min(boxes)


@pytest.fixture(scope="module")
def phone(chromium: Any) -> Iterator[Any]:
    with window(chromium, **FINGER) as view:
        yield view


@pytest.mark.parametrize("name", HOMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_picture_fits_a_phone_in_both_themes(phone: Any, name: str, scheme: str) -> None:
    phone.emulate_media(color_scheme=scheme)
    load(phone, address(HOMES[name]))
    assert phone.evaluate("document.documentElement.dataset.theme") == scheme
    place = phone.locator(f"#touch-{name}")
    place.scroll_into_view_if_needed()
    assert place.locator(".touch-picture").bounding_box()["width"] <= PHONE["width"]
    assert place.locator("figcaption").inner_text()
    # What a finger needs.
    assert smallest(place) >= 44
    assert overflow(phone) == {"wide": 0, "who": [], "cut": []}
    assert violations(phone) == []


@pytest.fixture(scope="module")
def desktop(chromium: Any) -> Iterator[Any]:
    with window(chromium, viewport=DESKTOP) as view:
        yield view


@pytest.fixture(scope="module")
def without_scripts(chromium: Any) -> Iterator[Any]:
    with window(chromium, viewport=DESKTOP, java_script_enabled=False) as view:
        yield view


@pytest.mark.parametrize("name", HOMES)
def test_on_paper_and_without_scripts_the_figure_stands_alone(
    desktop: Any, without_scripts: Any, name: str
) -> None:
    desktop.emulate_media(media="screen")
    load(desktop, address(HOMES[name]))
    assert desktop.locator(f"#touch-{name}").is_visible()
    assert smallest(desktop.locator(f"#touch-{name}")) >= 24
    desktop.emulate_media(media="print")
    assert desktop.locator(f"#touch-{name}").is_hidden()
    load(without_scripts, address(HOMES[name]))
    assert without_scripts.locator(f"#touch-{name}").count() == 1
    assert without_scripts.locator(f"#touch-{name}").is_hidden()


@pytest.mark.parametrize("name", HOMES)
def test_a_picture_weighs_little_and_only_its_page_loads_it(name: str) -> None:
    html = (SITE / HOMES[name]).read_text("utf-8")
    data = re.search(rf'<script type="application/json" id="{name}-data">.*?</script>', html, re.S)
    scripts = [SITE / "_static" / script for script in ("touch.js", f"touch-{name}.js")]
    allowed = 1_500_000 if name == "explorer" else 100_000
    sheets = re.findall(r'<a class="[^"]*\bdownload\b[^"]*"[^>]* href="([^"]+\.jpg)"', html)
    files = [*scripts, *((SITE / HOMES[name]).parent / sheet for sheet in sheets)]
    assert len(sheets) == (name == "explorer")
    assert len(data[0]) + sum(file.stat().st_size for file in files) < allowed
    loading = {page for page in SITE.rglob("*.html") if f"touch-{name}.js" in page.read_text()}
    assert loading == {SITE / HOMES[name]}
