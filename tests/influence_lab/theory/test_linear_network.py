from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from closed_forms import CHECKS, TOLERANCE

from influence_lab.theory import linear_network, symbolic


@pytest.mark.parametrize("name", CHECKS)
def test_closed_forms_agree_with_brute_force(name):
    assert CHECKS[name](linear_network) < TOLERANCE


def test_symbols_and_numbers_take_the_same_path():
    W, deltas = symbolic.symbols("w", 2, 2), symbolic.symbols("delta", 3, 2)
    eps, lam = sp.symbols("eps lam", positive=True)
    values = (
        np.random.default_rng(0).normal(size=(2, 2)),
        np.random.default_rng(1).normal(size=(3, 2)),
    )
    table = [
        *zip(W.ravel(), values[0].ravel(), strict=True),
        *zip(deltas.ravel(), values[1].ravel(), strict=True),
        (eps, 0.5),
        (lam, 0.1),
    ]
    exact = symbolic.substitute(linear_network.influence_data_set(W, deltas, eps, lam), table)
    found = linear_network.influence_data_set(*values, 0.5, 0.1)
    assert np.allclose(exact.astype(float), found, rtol=1e-10)


def test_is_zero_is_exact():
    x, y = symbolic.symbols("x"), symbolic.symbols("y")
    x, y = x.item(), y.item()
    assert symbolic.is_zero((x + y) ** 2 - x**2 - 2 * x * y - y**2)
    assert symbolic.is_zero(sp.sin(x) ** 2 + sp.cos(x) ** 2 - 1)
    assert not symbolic.is_zero((x + y) ** 2 - x**2 - y**2)
    # A numerical test would not tell this from 0.
    assert not symbolic.is_zero(x * sp.Rational(1, 10**40))


def test_unit_symbols_have_length_one():
    for size in (1, 2, 3, 4):
        vector = symbolic.unit_symbols("t", size)
        assert symbolic.is_zero(vector @ vector - 1)


def test_hessian_is_row_major():
    W = symbolic.symbols("w", 2, 3)
    p, q = symbolic.symbols("p", 2), symbolic.symbols("q", 3)
    H = symbolic.hessian((p @ W @ q) ** 2 / 2, W)
    assert symbolic.is_zero(H - np.outer(np.kron(p, q), np.kron(p, q)))
