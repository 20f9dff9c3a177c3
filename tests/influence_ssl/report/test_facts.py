"""What the page says of the score is what the book's records hold."""

import re

from influence_lab.records import results
from influence_ssl.report.facts import FACTS

METHODS = ("simclr", "byol", "barlow")


def numbers(sentence: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d\.\d+", sentence)]


def test_the_loss_ranks_nearly_as_the_score() -> None:
    methods = results.load_record("cpu", "stability")["methods"]
    found = [methods[method]["score against"]["loss"][0] for method in METHODS]
    assert numbers(FACTS["loss"]) == [round(min(found), 2), round(max(found), 2)]


def test_the_score_does_not_find_near_duplicates() -> None:
    methods = results.load_record("cpu", "near-duplicates")["methods"]
    for method in ("simclr", "byol"):
        _, low, high = methods[method]["score"]["pixels"]["auroc"]
        assert low < 0.5 < high
    assert methods["barlow"]["score"]["pixels"]["auroc"][2] < 0.5  # worse than chance
    for method in METHODS:
        assert methods[method]["representation kNN"]["pixels"]["auroc"][1] > 0.95


def test_the_score_predicts_little_of_leaving_an_image_out() -> None:
    regime = results.load_record("cpu", "memorisation")["predictors"]["crops"]
    most, rival = numbers(FACTS["cause"])
    for quantity in ("noise loss", "alignment loss"):
        assert abs(regime[quantity]["noise score, LoGra"]["16"][0]) < most
        assert round(regime[quantity]["kNN distance"]["16"][0], 1) >= rival
