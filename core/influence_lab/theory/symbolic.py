"""Exact derivatives with SymPy, in the shapes of the closed forms.

Arrays are NumPy object arrays of SymPy expressions, so that a formula in
`influence_lab.theory.linear_network` accepts both symbols and numbers. vec is row-major: the rows
of W in sequence, as NumPy and PyTorch flatten them.
"""

from collections.abc import Iterable

import numpy as np
import sympy as sp


def symbols(name: str, *shape: int) -> np.ndarray:
    """An array of real symbols, `name_0_1` and so on.

    Args:
        name: first part of every symbol's name.
        shape: shape of the array, () for a single symbol.
    """
    array = np.empty(shape, dtype=object)
    for position in np.ndindex(*shape):
        array[position] = sp.Symbol("_".join([name, *map(str, position)]), real=True)
    return array


def unit_symbols(name: str, size: int) -> np.ndarray:
    """A vector of length exactly 1, (size,), by stereographic projection of size − 1 symbols.

    Its entries are rational, 2t/(|t|² + 1) and (|t|² − 1)/(|t|² + 1), so identities about
    unit vectors can be checked with exact arithmetic. It reaches every unit vector except one.
    """
    t = symbols(name, size - 1)
    square = sp.Add(*(entry**2 for entry in t))
    return np.array([*(2 * entry / (square + 1) for entry in t), (square - 1) / (square + 1)])


def gradient(expression: sp.Expr, variables: np.ndarray) -> np.ndarray:
    """∂L/∂V, in the shape of V."""
    result = np.empty(variables.shape, dtype=object)
    for position in np.ndindex(*variables.shape):
        result[position] = sp.diff(expression, variables[position])
    return result


def hessian(expression: sp.Expr, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """∂²L / ∂vec(R) ∂vec(C), shape (R.size, C.size); C is R unless given."""
    first = gradient(expression, rows).ravel()
    against = (rows if columns is None else columns).ravel()
    return np.array([[sp.diff(g, c) for c in against] for g in first], dtype=object)


def is_zero(value: object) -> bool:
    """True if every entry is exactly 0 after exact simplification.

    No numbers are inserted: rational functions are reduced to lowest terms (`cancel`), all other
    expressions are simplified with `simplify`, and the result is compared with 0.
    """
    return all(_is_zero(sp.sympify(entry)) for entry in np.ravel(np.asarray(value, dtype=object)))


def solves(matrix: np.ndarray, solution: np.ndarray, right_hand_side: np.ndarray) -> bool:
    """True if matrix · solution − right_hand_side is exactly 0."""
    return is_zero(matrix @ solution - right_hand_side)


def inner(a: np.ndarray, b: np.ndarray) -> sp.Expr:
    """⟨a, b⟩: the sum of the products of the entries."""
    return sp.Add(*(p * q for p, q in zip(np.ravel(a), np.ravel(b), strict=True)))


def substitute(value: np.ndarray, pairs: Iterable[tuple[sp.Expr, sp.Expr]]) -> np.ndarray:
    """The array with each symbol of `pairs` replaced, entry by entry."""
    table = list(pairs)
    result = np.empty(np.shape(value), dtype=object)
    for position in np.ndindex(*result.shape):
        result[position] = sp.sympify(value[position]).subs(table)
    return result


def _is_zero(expression: sp.Expr) -> bool:
    if expression.is_rational_function():
        return sp.cancel(sp.together(expression)) == 0
    return sp.simplify(expression) == 0
