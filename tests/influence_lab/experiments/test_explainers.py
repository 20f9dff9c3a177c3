"""Methods judged by quanda: our adapter, the planted labels, and the form of the records.

quanda itself is installed only where the records are made; its base class stands for it here.
"""

import runpy
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from influence_lab.experiments import explainers
from influence_lab.experiments.task import Task
from influence_ssl import InfluenceScorer, Invariance, Supervised


class Base:
    """What :class:`quanda.explainers.Explainer` keeps of its arguments."""

    def __init__(self, model, train_dataset, task="image_classification", checkpoints=None):
        self.model, self.train_dataset = model, train_dataset


@pytest.fixture(scope="module")
def methods():
    quanda = ModuleType("quanda.explainers")
    quanda.Explainer = Base
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "quanda", ModuleType("quanda"))
        patch.setitem(sys.modules, "quanda.explainers", quanda)
        return runpy.run_path("benchmarks/quanda/ours.py")["methods"]("")


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6))
    model = explainers.classifier(encoder, 6, 3).eval()
    train = TensorDataset(torch.rand(12, 3, 8, 8), torch.arange(12) % 3)
    return model, train, torch.rand(4, 3, 8, 8), torch.tensor([2, 0, 1, 1])


def test_the_adapter_gives_minus_our_influence_bit_for_bit(methods, problem):
    model, train, queries, targets = problem
    kind, settings = methods["cross-entropy"]
    explainer = kind(model=model, train_dataset=train, checkpoints=["0.pth"], **settings)
    scorer = InfluenceScorer(model, Supervised(), progress=False).fit(train, keep=True)
    asked = TensorDataset(queries, targets)
    expected = -scorer.influence(asked).values
    found = explainer.explain(queries, targets)
    assert np.array_equal(found.numpy(), expected)
    assert np.array_equal(explainer.explain(queries, targets.tolist()).numpy(), expected)
    assert np.array_equal(explainer.self_influence().numpy(), scorer.score(train).magnitude)
    # The labels count: another target is another explanation.
    assert not np.array_equal(explainer.explain(queries, targets.flip(0)).numpy(), expected)


def test_without_labels_the_adapter_explains_the_representation(methods, problem):
    model, train, queries, targets = problem
    kind, settings = methods["invariance, no labels"]
    explainer = kind(model=model, train_dataset=train, **settings)
    encoder = InfluenceScorer(model.encoder, Invariance(), draws=4, progress=False)
    expected = -encoder.fit(train.tensors[0], keep=True).influence(queries).values
    assert np.array_equal(explainer.explain(queries, targets).numpy(), expected)
    assert np.array_equal(explainer.explain(queries, targets.flip(0)).numpy(), expected)


def test_wrong_labels_are_planted_where_they_are_said_to_be():
    labels = np.arange(600) % 10
    flipped, wrong = explainers.flip(labels, 200, 10)
    assert np.array_equal(np.flatnonzero(flipped != labels), wrong)
    assert len(wrong) == 200
    assert set(np.unique(flipped)) == set(range(10))
    # Each of the nine other classes is as likely.
    shifts = np.bincount((flipped - labels)[wrong] % 10, minlength=10)
    assert shifts[0] == 0
    assert shifts[1:].min() > 8


def test_a_stopped_run_goes_on_with_the_classifier_that_it_had_not_finished(tmp_path, monkeypatch):
    trained = []

    def fake(model, x, labels, folder, epochs):
        trained.append((folder.name, labels))
        if len(trained) == 2:
            raise KeyboardInterrupt
        folder.mkdir(parents=True)
        torch.save(model.state_dict(), folder / "06.pth")

    monkeypatch.setattr(explainers, "train", fake)
    task, sizes = Task("quanda", "tiny"), (24, 4, 6)
    with pytest.raises(KeyboardInterrupt):
        explainers.write(tmp_path / "data", task, sizes)
    explainers.write(tmp_path / "data", task, sizes)
    assert [name for name, _ in trained] == ["clean", "flipped", "flipped"]
    found = explainers.read(tmp_path / "data")
    right, wrong = (part.train.tensors[1] for part in (found.clean, found.flipped))
    assert torch.equal(right, trained[0][1])
    assert torch.nonzero(right != wrong).flatten().tolist() == found.wrong
    assert len(found.wrong) == 6
    assert not found.clean.model.training
    with torch.no_grad():
        assert torch.equal(found.clean.model(found.queries).argmax(1), found.predicted)


def test_the_interval_of_the_area_surrounds_that_of_its_images():
    success = np.random.default_rng(0).random(500) < np.linspace(0.4, 0, 500)
    area = np.trapezoid(np.cumsum(success) / success.sum()) / len(success)  # as quanda computes it
    value, low, high = explainers.mislabelling(success, area)
    assert value == pytest.approx(area, abs=1e-4)
    shares = 1 - (np.flatnonzero(success) + 0.5) / len(success)
    assert shares.mean() == pytest.approx(area, abs=1 / len(success))
    error = shares.std() / np.sqrt(len(shares))
    assert [value - low, high - value] == pytest.approx([1.96 * error] * 2, rel=0.15)


def test_a_library_that_cannot_be_imported_is_a_finding(tmp_path):
    script = tmp_path / "absent.py"
    script.write_text("import a_library_that_is_absent\n")
    record = explainers.run(script, None, tmp_path)
    assert "a_library_that_is_absent" in record["error"]
    (row,) = explainers.rows({"absent": record | {"package": "absent"}})
    assert "a_library_that_is_absent" in row["note"]


@pytest.mark.parametrize("profile", explainers.SIZES)
def test_records_have_one_form(profile):
    records = explainers.recorded(profile)
    there = {name: one for name, one in records.items() if one}
    assert len({str(one["problem"]) for one in there.values()}) <= 1
    for name, one in there.items():
        assert one["provenance"]["command"] == f"make explainers PROFILE={profile} (quanda/{name})"
    rows = list(explainers.rows(records))
    assert len(rows) >= len(records)
    for row in rows:
        assert ("note" in row) != ("class" in row)
    for one in there.values():
        for method in one["methods"].values():
            for metric in explainers.METRICS if not method["error"] else ():
                value, *ends = method[metric]
                assert -1 <= value <= 1
                assert not ends or ends[0] <= value <= ends[1]
