"""The approximations that are compared, each as a curvature at a given λ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from influence_lab.benchmark.approximations import (
    EKFAC,
    KFAC,
    DiagonalFisher,
    GlobalProjection,
    PCALoGra,
    ScaledLoGra,
)
from influence_lab.benchmark.factors import Factors
from influence_ssl import EmpiricalFisher, Identity, LoGra
from influence_ssl.curvature import Curvature

RANKS = (8, 16, 32, 64)
SKETCH = 2048
EXACT, LOSS = "exact", "loss"
DEFAULT = "random 16 per layer"

Make = Callable[[float, dict[str, Factors]], Curvature]


@dataclass(frozen=True)
class Candidate:
    """One approximation.

    Attributes:
        name: unique; the key in the record.
        family: candidates that share a line in the figure.
        space: candidates with the same space receive the same gradients.
        make: the curvature at λ, built from the layers' factors if ``factors`` is set.
        factors: whether a pass for the factors comes first; the cost includes it.
    """

    name: str
    family: str
    space: str
    make: Make
    factors: bool = False


def _logra(rank: int, joint: bool, kind: str) -> Candidate:
    words = "joint" if joint else "per layer"
    make: dict[str, Make] = {
        "random": lambda λ, _: ScaledLoGra(rank, joint, λ),
        "PCA": lambda λ, factors: PCALoGra(rank, joint, λ, factors=factors),
    }
    return Candidate(
        f"{kind} {rank} {words}", f"LoGra {kind}, {words}", f"{kind} {rank}", make[kind],
        kind == "PCA",
    )  # fmt: skip


def _all() -> list[Candidate]:
    full = partial(Candidate, space="full")
    return [
        full(EXACT, "exact", make=lambda λ, _: EmpiricalFisher(λ)),
        full("full per layer", "full, per layer", make=lambda λ, _: LoGra(None, False, λ)),
        *(
            _logra(rank, joint, kind)
            for kind in ("random", "PCA")
            for joint in (False, True)
            for rank in RANKS
        ),
        full(f"global {SKETCH}", "global projection",
             make=lambda λ, _: GlobalProjection(SKETCH, λ)),
        full("EK-FAC", "EK-FAC", make=lambda λ, factors: EKFAC(factors, λ), factors=True),
        full("K-FAC", "K-FAC", make=lambda λ, factors: KFAC(factors, λ), factors=True),
        full("diagonal", "diagonal", make=lambda λ, _: DiagonalFisher(λ)),
        full("gradient norm", "gradient norm", make=lambda λ, _: Identity()),
    ]  # fmt: skip


CANDIDATES = {candidate.name: candidate for candidate in _all()}
