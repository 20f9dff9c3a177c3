"""The pictures that answer back: driven in a browser, and held to NumPy and to their chapters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from influence_lab.theory import linear_network as net
from pages import ROOT, SITE
from test_browser import DESKTOP, PHONE, address, opened, overflow, violations

pytestmark = pytest.mark.usefixtures("built_site")
HOMES = {
    "drag": "book/foundations/one-example.html",
    "damping": "book/theory/leverage.html",
    "trace": "book/method/where.html",
}


def given(view: Any, name: str) -> Any:
    """The numbers that the chapter's cell put into the page."""
    return json.loads(view.locator(f"#{name}-data").inner_text())


def value(view: Any, selector: str) -> float:
    """A shown number, exactly."""
    return float(view.locator(selector).get_attribute("value"))


@pytest.fixture(scope="module")
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


def test_a_point_follows_the_pointer_and_goes_back(drag: Any) -> None:
    data = given(drag, "drag")
    inputs, targets = np.array(data["inputs"]), np.array(data["targets"])
    drag.get_by_role("button", name="Put the points back").click()
    point = drag.get_by_role("slider", name="Point C")
    box = point.locator("rect").bounding_box()
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


@pytest.fixture(scope="module")
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
    record = json.loads((ROOT / "book/results/cpu/traces.json").read_text("utf-8"))["shown"]
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


@pytest.mark.parametrize("name", HOMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_picture_fits_a_phone_in_both_themes(chromium: Any, name: str, scheme: str) -> None:
    options = {"scheme": scheme, "viewport": PHONE, "is_mobile": True, "has_touch": True}
    with opened(chromium, address(HOMES[name]), **options) as view:
        place = view.locator(f"#touch-{name}")
        place.scroll_into_view_if_needed()
        assert place.locator(".touch-picture").bounding_box()["width"] <= PHONE["width"]
        assert place.locator("figcaption").inner_text()
        assert overflow(view) == {"wide": 0, "who": [], "cut": []}
        assert violations(view) == []


@pytest.mark.parametrize("name", HOMES)
def test_on_paper_and_without_scripts_the_figure_stands_alone(chromium: Any, name: str) -> None:
    page = address(HOMES[name])
    with opened(chromium, page, viewport=DESKTOP) as view:
        assert view.locator(f"#touch-{name}").is_visible()
        view.emulate_media(media="print")
        assert view.locator(f"#touch-{name}").is_hidden()
    with opened(chromium, page, viewport=DESKTOP, java_script_enabled=False) as view:
        assert view.locator(f"#touch-{name}").is_hidden()


@pytest.mark.parametrize("name", HOMES)
def test_a_picture_weighs_little_and_only_its_page_loads_it(name: str) -> None:
    html = (SITE / HOMES[name]).read_text("utf-8")
    data = re.search(rf'<script type="application/json" id="{name}-data">.*?</script>', html, re.S)
    scripts = [SITE / "_static" / script for script in ("touch.js", f"touch-{name}.js")]
    assert len(data[0]) + sum(script.stat().st_size for script in scripts) < 100_000
    loading = {page for page in SITE.rglob("*.html") if f"touch-{name}.js" in page.read_text()}
    assert loading == {SITE / HOMES[name]}
