"""Search in fewer dimensions, and the record of what tracing costs."""

import json

import numpy as np
import pytest
import torch

from influence_lab.cli import main
from influence_lab.experiments import trace_cost
from influence_lab.experiments.trace_cost import ratio, recall


def test_recall_is_the_share_that_both_lists_hold():
    rng = torch.Generator().manual_seed(1)
    queries, phi = (torch.randn(n, 24, generator=rng, dtype=torch.float64) for n in (5, 60))
    assert recall(queries, phi, 24, top=7) == pytest.approx(np.ones(5))
    directions = torch.linalg.qr(
        torch.randn(24, 6, generator=torch.Generator().manual_seed(0)).double()
    )[0]
    expected = []
    for q in queries:
        exact = sorted(range(60), key=lambda i: -float(q @ phi[i]))[:7]
        fewer = sorted(range(60), key=lambda i: -float((q @ directions) @ (phi[i] @ directions)))[
            :7
        ]
        expected.append(len({*exact} & {*fewer}) / 7)
    assert 0.2 < np.mean(expected) < 0.9
    assert recall(queries, phi, 6, top=7) == pytest.approx(expected)


def test_reproduce_records_what_a_trace_costs(tmp_path, monkeypatch, capsys):
    from torch import nn

    net = nn.Sequential(nn.Conv2d(3, 4, 3, 8), nn.Flatten(), nn.Linear(64, 8))
    monkeypatch.setattr(trace_cost, "encoder_of", lambda task: net)
    monkeypatch.setattr(trace_cost, "SYNTHETIC", {"tiny": 50})
    arguments = ["reproduce", "trace-cost", "--profile", "tiny", "--results", str(tmp_path)]
    assert main(arguments) == 0
    assert "64 queries among 512 images" in capsys.readouterr().out
    record = json.loads((tmp_path / "tiny" / "trace-cost.json").read_text())
    took = record["seconds"]
    whole = took["fit, φ kept"] + took["influence"]
    assert ratio(record) == pytest.approx(whole / took["score"])
    assert took["score"] == pytest.approx(np.mean(record["scored"]), abs=0.006)
    assert 0 <= took["of which search"] < took["score"]
    assert record["dimensions"] == 4 * 4 + 8 * 8
    assert record["recall"].keys() == {"16", "64"}
    assert record["recall"]["64"][0] > record["recall"]["16"][0] > 20 / 512
    assert record["synthetic"]["images"] == 50
