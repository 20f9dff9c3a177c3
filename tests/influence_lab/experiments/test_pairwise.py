"""Other libraries at the influence on queries: the reference, agreement, and failing scripts."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from influence_lab.experiments import pairwise
from influence_lab.experiments.fidelity import MAIN
from influence_lab.gpu import budget


@pytest.fixture(scope="module")
def work() -> pairwise.Work:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)
    ).double()
    x, y = torch.rand(12, 3, 8, 8).double(), torch.rand(4, 3, 8, 8).double()
    pairs = [(one, one + 0.2 * torch.randn_like(one)) for one in (x, y)]
    return pairwise.Work(encoder.eval(), *pairs, "random images", "0")


def brute_force(work: pairwise.Work) -> tuple[np.ndarray, float]:
    """gᵀ(H+λI)⁻¹h from autograd's gradients of the weights of both layers."""
    weights = [work.encoder[0].weight, work.encoder[3].weight]

    def gradients(pair):
        rows = []
        for one, other in zip(*pair, strict=True):
            z = work.encoder(torch.stack([one, other]))
            loss = 1 - torch.cosine_similarity(z[0], z[1], dim=0)
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
        return torch.stack(rows)

    g, q = gradients(work.train), gradients(work.queries)
    h = g.T @ g / len(g)
    λ = MAIN * float(h.trace()) / len(g)
    return (q @ torch.linalg.solve(h + λ * torch.eye(len(h)), g.T)).numpy(), λ


def test_the_reference_is_the_exact_fisher_with_each_image_s_own_noise(work, tmp_path):
    expected, λ = brute_force(work)
    found, damping = pairwise.exact(work, tmp_path / "exact.npz")
    assert damping == pytest.approx(λ, rel=1e-9)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    again, _ = pairwise.exact(work, tmp_path / "exact.npz")
    assert np.array_equal(found, again)
    with pytest.raises(Exception, match="other images"):
        pairwise.exact(work._replace(digest="1"), tmp_path / "exact.npz")


def test_agreement_is_per_query():
    rng = np.random.default_rng(0)
    found, reference = rng.normal(size=(2, 3, 30))
    one = pairwise.agreement(found, reference)
    rho = [spearmanr(a, b).statistic for a, b in zip(found, reference, strict=True)]
    assert one["spearman"][0] == pytest.approx(np.mean(rho), abs=1e-4)
    assert one["quartiles"] == pytest.approx(np.quantile(rho, [0.25, 0.75]), abs=1e-4)
    same = pairwise.agreement(reference, reference)
    assert same["spearman"][0] == 1
    assert same["shared of ten"][0] == 10
    # Of ten in thirty, chance shares a third.
    assert one["shared of ten"][0] < 7


SCRIPT = """
import torch
PACKAGE = "torch"
METHOD = "{method}"
def influence(encoder, train, queries, damping):
    {body}
"""


@dataclass
class Case:
    body: str
    error: str


# The time may be over within a callback of the garbage collector, where Python drops the error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "case",
    [
        Case("return torch.zeros(2, 2)", "a result of shape (2, 2), not (4, 12)"),
        Case("return torch.full((4, 12), torch.nan)", "a result that is not finite"),
        Case("raise AssertionError('no convolutions')", "AssertionError: no convolutions"),
        Case("while True: damping += 1", "not done after 1 seconds of processor time"),
    ],
    ids=lambda case: case.error,
)
def test_a_library_that_fails_is_recorded_with_its_error(case, work, tmp_path, monkeypatch):
    monkeypatch.setattr(pairwise, "SECONDS", 1 if "while" in case.body else 60)
    path = tmp_path / "peer.py"
    path.write_text(SCRIPT.format(method="none", body=case.body))
    record = pairwise.run(path, work, np.zeros((4, 12)), 0.1)
    assert case.error in record["error"]
    assert "spearman" not in record


class Collected:
    """In a cycle, so that the garbage collector removes it; there Python drops what is raised."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.cycle, self.run = self, run

    def __del__(self) -> None:
        self.run()


def forever() -> None:
    while True:
        pass


def first_where_errors_are_dropped() -> None:
    Collected(forever)
    gc.collect()
    forever()


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_time_that_is_over_where_errors_are_dropped_is_over_again():
    with pytest.raises(pairwise.TooLong), pairwise.limited(1):
        first_where_errors_are_dropped()


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_budget_that_ends_where_errors_are_dropped_ends_again():
    with pytest.raises(budget.OutOfTime), budget.ending(0.5):
        first_where_errors_are_dropped()


def test_memory_is_refused_in_the_block_alone():
    with pytest.raises(RuntimeError, match="can't allocate memory"), pairwise.limited(60, 2**30):
        torch.empty(2**32, dtype=torch.uint8)
    assert len(torch.empty(2**32, dtype=torch.uint8)) == 2**32


def test_a_clock_that_stands_for_a_while_gives_no_time_of_0(work, monkeypatch):
    """As on a virtual machine beside others: here the clock moves at every tenth question."""
    asked = iter(range(10**6))
    monkeypatch.setattr(pairwise.time, "process_time", lambda: next(asked) // 10 * 0.03)
    assert pairwise._plain(work) == pytest.approx(0.03 / 9, rel=0.3)


def test_a_run_records_agreement_cost_and_lines(work, tmp_path):
    reference, λ = pairwise.exact(work, tmp_path / "exact.npz")
    record = pairwise.run(Path("benchmarks/pairs/ours.py"), work, reference, λ)
    assert record["error"] is None
    assert record["spearman"][0] > 0.5  # LoGra of two small layers
    assert record["passes"] > 0
    assert isinstance(record["bytes"], int)  # so small a call may fit into memory freed before it
    assert record["package"] == "influence-ssl"
    assert 5 < record["lines"] < 20
