"""Twelve architectures against brute force, the record of all, and what an error looks like."""

import json

import pytest
import torch
from torch import nn

from influence_lab.cli import main
from influence_lab.experiments import architectures
from influence_lab.records import results
from influence_ssl.curvature import Layer

# Residual, attention, tokens first, windows, depth-wise, TensorFlow's padding, standardised
# weights, float32 inside, gradients that vanish.
TWELVE = (
    "timm.test_resnet", "timm.test_vit", "timm.test_efficientnet", "timm.test_convnext",
    "timm.test_nfnet", "timm.test_byobnet", "timm.levit_128s", "timm.efficientvit_b0",
    "timm.tf_mobilenetv3_small_minimal_100", "timm.edgenext_xx_small",
    "torchvision.squeezenet1_1", "torchvision.shufflenet_v2_x0_5",
)  # fmt: skip


def test_rounding_refuses_no_encoder_that_computes_in_single_precision():
    """With one thread, some processors sum in an order that changes one gradient by 3 per cent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        row = architectures.checked("timm", "efficientvit_b0")
    finally:
        torch.set_num_threads(before)
    assert row["error"] <= architectures.SINGLE, row


@pytest.mark.parametrize("key", TWELVE)
def test_scores_are_those_of_brute_force(key):
    row = architectures.checked(*key.split("."))
    single = key == "timm.efficientvit_b0"
    assert row["error"] <= (architectures.SINGLE if single else architectures.DOUBLE), row
    assert row["layers"] > 5


def test_a_wrong_gradient_would_show(monkeypatch):
    project = Layer.contract
    monkeypatch.setattr(
        Layer, "contract", lambda self, *rest: project(self, *rest) * (1 + 1e-4 * (self.size > 9))
    )
    monkeypatch.setattr("influence_ssl._checks.differences", lambda *_: [])
    row = architectures.checked("timm", "test_resnet")
    assert row["gradient error"] == pytest.approx(1e-4, rel=0.2)


def test_a_model_that_is_refused_or_crashes_has_its_line(monkeypatch):
    class Mixing(nn.Module):
        def __init__(self, fails=False):
            super().__init__()
            self.fails, self.linear = fails, nn.Linear(3 * 32 * 32, 5)

        def forward(self, x):
            if self.fails and x.requires_grad:
                raise RuntimeError("no gradients\nhere")
            z = self.linear(x.flatten(1))
            return z + z.mean(0)

    rows = [architectures.compared(Mixing(fails).double(), 32) for fails in (False, True)]
    assert "depends on the other images" in rows[0]["message"]
    assert rows[1]["crash"] == "RuntimeError: no gradients"
    assert [architectures.right(row) for row in rows] == [True, False]
    found = {name: {"name": name, "size": 32, **row} for name, row in zip("ab", rows, strict=True)}
    assert architectures.summary(found).endswith("refused: a; wrong: b")
    assert "no gradients" in architectures.table(found)


def test_the_command_records_each_model_once(tmp_path, capsys, monkeypatch):
    where = ["--profile", "tiny", "--results", str(tmp_path)]
    assert main(["reproduce", "architectures", *where]) == 0
    assert "of 2 models 2 are right to 1e-08" in capsys.readouterr().out
    path = architectures.path_of("tiny", tmp_path)
    record = json.loads(path.read_text())
    assert record["models"]["timm.starnet"]["name"] == "starnet_s050"
    monkeypatch.setattr(architectures, "checked", None)
    assert main(["reproduce", "architectures", *where]) == 0
    assert json.loads(path.read_text()) == record


def test_every_recorded_model_is_right_or_has_one_line():
    _, record = results.largest_record("architectures")
    rows = record["models"]
    assert set(rows) <= set(architectures.keys("cpu"))
    assert all(architectures.right(row) for row in rows.values()), architectures.summary(rows)
    assert all("\n" not in row.get("message", "") for row in rows.values())
    assert len(architectures.table(rows).splitlines()) == len(rows) + 1


def test_the_quadratic_forms_are_those_of_a_dense_inverse():
    g = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    h = g.T @ g / 4
    dense = torch.from_numpy(h + 0.1 * h.trace() / 3 * torch.eye(3).numpy())
    expected = ((g @ torch.linalg.inv(dense).numpy()) * g).sum(1)
    assert architectures.quadratic_forms(g, 0.1) == pytest.approx(expected)
