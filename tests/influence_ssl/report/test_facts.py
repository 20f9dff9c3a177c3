"""What the page says of the score is what the book's records hold, point by point.

Every point of the page's list of meanings has its test here, and so has every fact; the last test
holds the list and this file to each other. Tests named in quotes stand elsewhere.
"""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from reports import save, scored
from scipy.stats import spearmanr

from influence_lab.experiments import datamodels
from influence_lab.records import results
from influence_ssl import InfluenceScorer
from influence_ssl.analysis.shares import fisher_exact
from influence_ssl.report import html
from influence_ssl.report.content import EXTREME, SETTLED
from influence_ssl.report.facts import FACTS
from influence_ssl.report.plane import plane

METHODS = ("simclr", "byol", "barlow")


def numbers(sentence: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d\.\d+", sentence)]


def ends(values: list[float], digits: int = 2) -> list[float]:
    return [round(min(values), digits), round(max(values), digits)]


def test_the_score_ranks_fragility_nearly_as_the_loss() -> None:
    """Which is how far the perturbation moves the representation, by definition."""
    methods = results.load_record("cpu", "stability")["methods"]
    found = [methods[method]["score against"]["loss"][0] for method in METHODS]
    assert numbers(FACTS["loss"]) == ends(found)


def test_the_score_does_not_find_near_duplicates() -> None:
    methods = results.load_record("cpu", "near-duplicates")["methods"]
    score, rival = (
        [methods[method][key]["pixels"]["auroc"] for method in METHODS]
        for key in ("score", "representation kNN")
    )
    *found, chance, low, high = numbers(FACTS["detector"])
    assert (found, chance) == (ends([value for value, *_ in score]), 0.5)
    assert [low, high] == ends([value for value, *_ in rival])
    # "Did not tell": no interval lies above chance.
    assert all(lower < 0.5 for _, lower, _ in score)


def test_distances_find_what_is_far_and_the_score_hardly() -> None:
    cases = results.load_record("cpu", "concept")["cases"]
    elsewhere = [case["atypical elsewhere"]["auroc"] for case in cases.values()]
    planted = results.load_record("cpu", "planted")["off-topic"]["trained"]
    assert len(elsewhere) == 4
    assert numbers(FACTS["far"]) == [
        *ends([auroc["distance"][0] for auroc in elsewhere]),
        *ends([auroc["score"][0] for auroc in elsewhere]),
        0.5,
        round(planted["density"][0], 2),
        round(planted["mahalanobis"][0], 2),
    ]
    # "Hardly": the intervals of both lie apart under each encoder.
    assert all(auroc["score"][2] < auroc["distance"][1] for auroc in elsewhere)
    assert f"the {EXTREME:.0%}".replace("%", " %") in FACTS["far"]


def test_the_score_predicts_part_of_leaving_an_image_out() -> None:
    scores, distances = [], []
    for name in ("memorisation", "memorisation-cifar10"):
        found = results.load_record("cpu", name)["predictors"]["crops"]
        rows = [found[quantity] for quantity in ("noise loss", "alignment loss")]
        scores += ends([row["noise score, LoGra"]["16"][0] for row in rows])
        distances += [row["kNN distance"]["16"][0] for row in rows]
    assert numbers(FACTS["cause"]) == [*scores, *ends(distances)]


def test_another_training_ranks_otherwise() -> None:
    methods = results.load_record("cpu", "stability")["methods"]
    found = [methods[m]["score"]["training"]["1"]["spearman"][0] for m in METHODS]
    small = results.load_record("cpu", "memorisation")["agreement of two encoders"]
    halves = [regime["noise score, LoGra"] for regime in small.values()]
    assert numbers(FACTS["encoder"]) == [*ends(found), *ends(halves)]


def test_the_mean_is_the_effective_dimension_bounded_by_rank_and_lowered_by_damping() -> None:
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    scores = InfluenceScorer(encoder, progress=False).score(torch.randn(40, 3, 2, 2))
    dimension = sum(scores.provenance["effective dimension"])
    np.testing.assert_allclose(scores.magnitude.mean(), dimension, rtol=1e-4)
    methods = results.load_record("cpu", "levels")["methods"]
    cells = {name: cell for m in METHODS for name, cell in methods[m]["cells"].items()}
    for cell in cells.values():
        np.testing.assert_allclose(cell["mean |I|"], cell["effective dimension"], rtol=1e-5)
        assert cell["effective dimension"] < cell["ceiling"]
        # "Compare orders": they hardly depend on what sets the level.
        assert cell["rank correlation"][0] > 0.99
    level = {name: cell["mean |I|"] for name, cell in methods["simclr"]["cells"].items()}
    by_rank = [level[f"rank {rank}, damping 0.1"] for rank in (4, 8, 16, 32, 64)]
    by_damping = [level[f"rank 16, damping {damping}"] for damping in ("0.01", "0.1", "1")]
    assert by_rank == sorted(by_rank)
    assert by_damping == sorted(by_damping, reverse=True)


def test_the_expected_agreement_of_two_runs_is_what_two_runs_have() -> None:
    """The estimate from one run's own draws, beside the correlation of two separate runs."""
    stability = results.load_record("cpu", "stability")["methods"]["simclr"]["score"]["noise"]
    estimate = results.load_record("cpu", "fidelity")["reliability"]
    for draws in ("1", "2", "4"):
        assert abs(estimate[draws][0] - stability[draws]["spearman"][0]) < 0.01


def test_near_duplicates_make_p_too_small() -> None:
    """A label that has nothing to do with the order, on 40 pictures with five copies each."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        label = np.repeat(rng.permutation(40) < 20, 5)
        top = np.repeat(rng.permutation(40) < 8, 5)
        alarms += fisher_exact(int((label & top).sum()), 40, 100, 200) < 0.05
    assert alarms > 3 * 0.05 * 200


def test_every_number_for_a_question_is_that_of_the_book() -> None:
    """The list's last point beside the table of its page."""
    page = (Path(__file__).parents[3] / "book/practice/which-number.md").read_text("utf-8")
    rows = re.findall(r"^\| ([^|]+\?) \| ([^|]+) \|", page, re.M)
    answers = {question.split("?")[0].strip(): answer for question, answer in rows}
    for question, words in (
        ("Is there a near-duplicate", "duplicate groups"),
        ("Was it memorised", "distance to the nearest"),
        ("Is it off-topic", "distance"),
        ("Is it fragile under noise", "loss"),
        ("Is its label wrong", "None"),
    ):
        assert words in answers[question], question


POINTS = {
    "What is measured.": test_the_score_ranks_fragility_nearly_as_the_loss,
    "Close to the loss.": test_the_score_ranks_fragility_nearly_as_the_loss,
    "Not a detector.": test_the_score_does_not_find_near_duplicates,
    "Not the effect of retraining.": test_the_score_predicts_part_of_leaving_an_image_out,
    "The mean says little about the images.": (
        test_the_mean_is_the_effective_dimension_bounded_by_rank_and_lowered_by_damping
    ),
    "Uncertainty.": test_the_expected_agreement_of_two_runs_is_what_two_runs_have,
    "Uncertainty: not known.": "test_what_makes_the_rest_worthless_comes_first",
    "One encoder.": test_another_training_ranks_otherwise,
    "Which number for which question.": test_every_number_for_a_question_is_that_of_the_book,
}


def test_more_draws_make_the_order_more_reliable() -> None:
    """And the lists of a trace, whose reliability is estimated in the same way."""
    estimate = results.load_record("cpu", "fidelity")["reliability"]
    assert [*map(int, estimate)] == [1, 2, 3, 4]
    assert all(a[0] < b[0] for a, b in pairwise(estimate.values()))
    noise = results.load_record("cpu", "stability")["methods"]["simclr"]["score"]["noise"]
    found = [noise[draws]["spearman"][0] for draws in ("1", "2", "4", "8")]
    assert found == sorted(found)
    # The page's limit lies below what one draw reached, so that the warning is rare.
    assert estimate["1"][1] > SETTLED


def test_orders_that_nearly_agree_may_have_other_top_images() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=500)
    runs = truth + 0.15 * rng.normal(size=(2, 500))
    assert spearmanr(*runs).statistic > 0.95
    assert len(np.intersect1d(*np.argsort(runs, 1)[:, -50:])) < 50


def test_a_small_p_does_not_explain_why() -> None:
    """A label that goes with brightness, and a score that depends on brightness alone."""
    rng = np.random.default_rng(0)
    dark = rng.random(400) < 0.3
    label = rng.random(400) < np.where(dark, 0.8, 0.2)
    score = dark + 0.5 * rng.random(400)
    top = score >= np.sort(score)[-40]
    assert fisher_exact(int((top & label).sum()), 40, int(label.sum()), 400) < 1e-6
    inside = label[dark]
    assert fisher_exact(int((top[dark] & inside).sum()), 40, int(inside.sum()), dark.sum()) > 0.05


def test_images_that_are_close_on_the_map_may_differ() -> None:
    z = np.array([[9.0, 0, 0], [9, 3, 0], [9, -3, 0], [9, 0, 1], [9, 0, -1]])
    z = np.hstack([z, np.array([[0.0], [0], [0], [0.2], [0.2]])])
    z[0, 3], points = -0.4, plane(z).points
    assert np.linalg.norm(points[0] - points.mean(0)) < 0.05
    assert plane(z).shares[0] + plane(z).shares[1] < 1


def test_near_is_something_else_than_helpful() -> None:
    record = results.load_record("cpu", "traces")
    assert record["shared"]["influence and nearest neighbours"][2] < 0.2


def test_a_large_gradient_influences_every_query_and_the_cosine_removes_it() -> None:
    rng = np.random.default_rng(0)
    queries, images = rng.normal(size=(20, 30)), rng.normal(size=(100, 30))
    images[0] *= 50
    product = queries @ images.T
    unit = product / np.linalg.norm(images, axis=1)
    firsts = [np.abs(values).argmax(1) == 0 for values in (product, unit)]
    assert firsts[0].mean() > 0.9
    assert firsts[1].mean() < 0.1


def test_influence_predicts_little_of_retraining() -> None:
    regimes = results.load_record("cpu", "datamodels")["regimes"]
    found = [
        regimes[regime]["alignment loss"]["outside the pool"]["scores"][datamodels.INFLUENCE]["16"]
        for regime in ("crops", "crops and noise")
    ]
    assert numbers(FACTS["retraining"]) == [round(value, 2) for value, *_ in found]


# What the other sections of both pages say beyond definitions, and the test of each.
SENTENCES = {
    "do not describe a trained encoder": "test_what_makes_the_rest_worthless_comes_first",
    "Score with more --draws.": test_more_draws_make_the_order_more_reliable,
    "a rank correlation of about": test_the_expected_agreement_of_two_runs_is_what_two_runs_have,
    "almost the same order": test_the_score_ranks_fragility_nearly_as_the_loss,
    "The top images may still differ": test_orders_that_nearly_agree_may_have_other_top_images,
    "The influence score is not used to find the groups": "test_check_in_one_command",
    "keeps the image with the most pixels": "test_of_each_group_the_best_that_may_stay_stays",
    "on pixels alone, or": "test_groups_tell_the_rules_that_the_command_recorded",
    "the score cannot replace it": test_distances_find_what_is_far_and_the_score_hardly,
    "It does not explain why": test_a_small_p_does_not_explain_why,
    "many of them make p too small": test_near_duplicates_make_p_too_small,
    "may still differ in other directions": test_images_that_are_close_on_the_map_may_differ,
    "placed by the two principal components": (
        "test_the_map_is_the_principal_components_of_unit_representations"
    ),
}
TRACED = {
    "Help and hurt.": "test_influence_is_the_bilinear_form_of_brute_force_gradients",
    "Near is something else.": test_near_is_something_else_than_helpful,
    "Uncertainty.": "test_the_reliability_is_that_of_the_draws",
    "Uncertainty: not known.": "test_the_reliability_is_that_of_the_draws",
    "One image heads many lists.": (
        test_a_large_gradient_influences_every_query_and_the_cosine_removes_it
    ),
    "Not the effect of retraining.": test_influence_predicts_little_of_retraining,
}


def test_every_sentence_and_every_point_of_a_trace_has_its_test() -> None:
    folder = Path(html.__file__).parent
    template, code = (
        (folder / name).read_text("utf-8") for name in ("template.html.j2", "content.py")
    )
    parts = re.sub(r"<[^>]+>", "", template) + re.sub(r'"\n +f?"', "", code)
    said = " ".join(parts.split())
    assert [words for words in SENTENCES if words not in said] == []
    page = (folder / "trace.html.j2").read_text("utf-8")
    assert {*re.findall(r"<li><strong>(.*?)</strong>", page)} == {*TRACED}
    root = Path(__file__).parents[1]
    code = "".join(path.read_text("utf-8") for path in root.rglob("test_*.py"))
    tests = [*SENTENCES.values(), *TRACED.values(), *POINTS.values()]
    named = {test for test in tests if isinstance(test, str)}
    assert {name for name in named if f"def {name}(" not in code} == set()


def test_every_point_and_every_fact_has_its_test(tmp_path: Path) -> None:
    template = Path(html.__file__).with_name("template.html.j2").read_text("utf-8")
    meaning = template[template.index('id="meaning"') : template.index('id="distribution"')]
    assert {*re.findall(r"<li><strong>(.*?)</strong>", meaning)} == {*POINTS}
    code = Path(__file__).read_text("utf-8")
    trace = Path(html.__file__).with_name("trace.html.j2").read_text("utf-8")
    used = {*re.findall(r"facts\.(\w+)", template + trace)}
    assert used == {*FACTS} == {*re.findall(r'FACTS\["(\w+)"\]', code)}
    html.write(save(scored(20), tmp_path / "s.parquet"), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8").replace("&#39;", "'")
    assert all(fact in page for name, fact in FACTS.items() if f"facts.{name}" in template)
