"""Wrong formulas on purpose: each of them has to make a check fail.

`IN_CLOSED_FORMS` changes functions of `influence_lab.theory.linear_network`; `test_mutations.py` runs them
in every test run. `IN_CHAPTERS` changes a closed form or a chapter and runs the chapter's cells, to
see that its verdict is refused: `python tests/influence_lab/theory/mutations.py`, a few minutes.
"""

# ruff: noqa: E501

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import time
from pathlib import Path
from types import ModuleType

import influence_lab
from influence_lab.theory import linear_network

ROOT = Path(__file__).resolve().parents[3]

IN_CLOSED_FORMS = (
    ("sign of the residual", "supervised_gradients", "return -r * np.outer(v, x), -r", "return r * np.outer(v, x), -r"),
    ("outer product transposed", "supervised_gradients", "-r * np.outer(v, x),", "-r * np.outer(x, v).reshape(W.shape),"),
    ("⊗ swapped in H_WW", "supervised_hessian", "np.outer(v, v), np.outer(x, x)", "np.outer(x, x), np.outer(v, v)"),
    ("⊗ swapped in H_Wv", "supervised_hessian", "np.kron(v, x)", "np.kron(x, v)"),
    ("sign in H_Wv", "supervised_hessian", "W @ x) - r * np.kron", "W @ x) + r * np.kron"),
    ("missing square in the loss", "loss", "eps**2 * _square(delta @ W.T)\n", "eps * _square(delta @ W.T)\n"),
    ("factor 2 in the gradient", "loss_gradient", "2 * eps**2 * np.outer(W @ delta", "eps**2 * np.outer(W @ delta"),
    ("⊗ swapped in the Hessian", "loss_hessian", "np.kron(np.eye(k, dtype=int), 2 * eps**2 * np.outer(delta, delta))",
     "np.kron(2 * eps**2 * np.outer(delta, delta), np.eye(k, dtype=int))"),
    ("factor 2 in Theorem 1", "influence_printed", "-4 * eps**4 * _square(delta @ W.T) /", "-2 * eps**4 * _square(delta @ W.T) /"),
    ("sign in Theorem 1", "influence_printed", "-4 * eps**4 * _square(delta @ W.T) /", "4 * eps**4 * _square(delta @ W.T) /"),
    ("factor 2 below in Theorem 1", "influence_printed", "/ (lam + 2 * eps**2)\n", "/ (lam + eps**2)\n"),
    ("missing length of delta", "influence_own", "-4 * eps**4 * size *", "-4 * eps**4 *"),
    ("length of delta below", "influence_own", "(lam + 2 * eps**2 * size)", "(lam + 2 * eps**2)"),
    ("power of epsilon", "influence_data_set", "-4 * eps**4 * _square(deltas @ W.T) * reach", "-4 * eps**2 * _square(deltas @ W.T) * reach"),
    ("mean becomes sum", "_second_moment", "deltas.T @ deltas / len(deltas)", "deltas.T @ deltas"),
    ("factor 2 in the curvature", "_curvature", "2 * eps**2 * _second_moment", "eps**2 * _second_moment"),
    ("damping forgotten", "_curvature", " + lam * np.eye(d, dtype=int)", " + 0 * np.eye(d, dtype=int)"),
    ("exponent", "scaling_exponent", "4 * (lam + eps**2) /", "2 * (lam + eps**2) /"),
    ("sign in the change", "influence_change", "- 2 * eps**2 * _square(delta @ E.T)", "+ 2 * eps**2 * _square(delta @ E.T)"),
    ("lower end", "influence_change_range", "- 2 * eps**2 * eta**2", "- 2 * eps**2 * eta"),
    ("upper end", "influence_change_range", "4 * eps**2 * s * tau - 2 * eps**2 * tau**2", "4 * eps**2 * s * eta - 2 * eps**2 * tau**2"),
    ("group: square after the sum", "group_printed", "_square((deltas @ W.T).sum(0))", "_square(deltas @ W.T).sum(0)"),
    ("group remainder", "group_remainder", "return -4 * eps**2 * sum(", "return -2 * eps**2 * sum("),
    ("group: cross-leverage dropped", "group_influence", "(u @ u.T * h).sum()", "(u @ u.T).sum()"),
    ("expected influence", "expected_influence", "-2 * eps**2 * np.trace", "-4 * eps**2 * np.trace"),
    ("tangent: d for d − 1", "expected_influence_tangent", "(len(x) - 1)", "len(x)"),
    ("tangent: sign", "expected_influence_tangent", "(W * W).sum() - _square(W @ x)", "(W * W).sum() + _square(W @ x)"),
    ("noise mean", "noise_mean", "mu**2 * _square(W.sum(1))", "mu * _square(W.sum(1))"),
    ("noise variance", "noise_variance", "4 * sigma**2 * mu**2", "2 * sigma**2 * mu**2"),
    ("draws", "draws_needed", "(relative_error * mean) ** 2", "(relative_error * mean)"),
    ("effective dimension", "effective_dimension", "(s / (s + ridge))", "(s / (s + 2 * ridge))"),
    ("leverage", "_leverage_factor", "(s[kept] ** 2 + ridge)", "(s[kept] + ridge)"),
    ("leverage matrix: signs", "leverage_matrix", "return factor @ factor.T", "return abs(factor) @ abs(factor).T"),
    ("leverage matrix: damping", "leverage_matrix", "return G @ _inverse(G.T @ G + ridge *", "return G @ _inverse(G.T @ G + 2 * ridge *"),
    ("duplicates", "duplicate_leverage", "(1 + (copies - 1) * first)", "(1 + copies * first)"),
    ("leave one out", "leave_one_out_score", "score / (1 - score / n)", "score / (1 + score / n)"),
    ("cosine: projection", "cosine_loss", "p = u - alpha * a\n    t_squared", "p = u\n    t_squared"),
    ("cosine: missing square", "cosine_loss", "eps**2 * (p @ p) / ((a @ a) * (1 + eps * alpha) ** 2)",
     "eps**2 * (p @ p) / ((a @ a) * (1 + eps * alpha))"),
    ("cosine leading: factor", "cosine_loss_leading", "/ (2 * (a @ a))", "/ (a @ a)"),
    ("cosine gradient: sign", "cosine_gradient_leading", "np.outer(p, q) - (p @ p)", "np.outer(p, q) + (p @ p)"),
    ("anchored minimiser", "anchored_minimiser", "return lam * anchor @", "return anchor @"),
    ("anchored leverage", "anchored_leverages", "return 2 * eps**2 / len(deltas) *", "return eps**2 / len(deltas) *"),
    ("refit: missing square", "anchored_refit_loss", "loss_at_optimum / (1 - leverage) ** 2", "loss_at_optimum / (1 - leverage)"),
    ("group refit: sign", "anchored_group_refit", "np.eye(len(members)) - coupling", "np.eye(len(members)) + coupling"),
)  # fmt: skip
"""(what is wrong, function, its right text, its wrong text)"""

IN_CHAPTERS = (
    ("theory/theorem-1", "influence_own", "-4 * eps**4 * size *", "-2 * eps**4 * size *"),
    ("theory/theorem-1", "influence_data_set", "-4 * eps**4 * _square(deltas @ W.T) * reach", "-4 * eps**4 * reach"),
    ("theory/lemmas", "supervised_hessian", "np.outer(v, v), np.outer(x, x)", "np.outer(x, x), np.outer(v, v)"),
    ("theory/lemmas", "supervised_hessian", "W @ x) - r * np.kron", "W @ x) + r * np.kron"),
    ("theory/properties", "influence_change", "- 2 * eps**2 * _square(delta @ E.T)", "- eps**2 * _square(delta @ E.T)"),
    ("theory/properties", "scaling_exponent", "4 * (lam + eps**2) /", "4 * (lam + 2 * eps**2) /"),
    ("theory/composition", "group_influence", "(u @ u.T * h).sum()", "(u @ u.T).sum()"),
    ("theory/composition", "group_remainder", "return -4 * eps**2 * sum(", "return -2 * eps**2 * sum("),
    ("theory/augmentations", "expected_influence_tangent", "(len(x) - 1)", "len(x)"),
    ("theory/augmentations", None, "draw**2", "draw"),
    ("theory/noise", "noise_variance", "4 * sigma**2 * mu**2", "2 * sigma**2 * mu**2"),
    ("theory/cosine", None, "(q - 1) * g", "q * g"),
    ("theory/cosine", "cosine_gradient_leading", "np.outer(p, q) - (p @ p)", "np.outer(p, q) + (p @ p)"),
    ("theory/leverage", "duplicate_leverage", "(1 + (copies - 1) * first)", "(1 + copies * first)"),
    ("theory/leverage", "leverage_matrix", "return factor @ factor.T", "return abs(factor) @ abs(factor).T"),
    ("theory/collapse", "anchored_refit_loss", "loss_at_optimum / (1 - leverage) ** 2", "loss_at_optimum / (1 - leverage)"),
    ("foundations/one-example", None, "+ sign * gradient", "- sign * gradient"),
)  # fmt: skip
"""(chapter, changed function or None for the chapter itself, right text, wrong text)"""


def mutated(function: str, right: str, wrong: str) -> ModuleType:
    """The module of closed forms with every occurrence of a text in one function changed."""
    source = inspect.getsource(getattr(linear_network, function))
    if right not in source:
        raise LookupError(f"{function} has no {right!r} to change")
    module = ModuleType(linear_network.__name__)
    for text in (inspect.getsource(linear_network), source.replace(right, wrong)):
        code = compile(text, function, "exec", flags=annotations.compiler_flag)
        exec(code, module.__dict__)
    return module


def run_chapter(name: str, changed: str | None, right: str, wrong: str) -> str:
    """Run a chapter's cells with one change; the error that stops it, or "survived"."""
    import jupytext
    import matplotlib

    matplotlib.use("agg")
    chapter = ROOT / "book" / f"{name}.md"
    cells = [c.source for c in jupytext.read(chapter).cells if c.cell_type == "code"]
    module = linear_network
    if changed is None:
        if not any(right in cell for cell in cells):
            raise LookupError(f"{chapter.name} has no {right!r} to change")
        cells = [cell.replace(right, wrong) for cell in cells]
    else:
        module = mutated(changed, right, wrong)
    sys.modules["influence_lab.theory.linear_network"] = influence_lab.theory.linear_network = (
        module
    )
    try:
        namespace: dict = {"__name__": "__main__"}
        with contextlib.redirect_stdout(io.StringIO()):
            for cell in cells:
                exec(compile(cell, str(chapter), "exec"), namespace)
    except AssertionError as error:
        return str(error) or "an assertion of the chapter"
    finally:
        sys.modules["influence_lab.theory.linear_network"] = linear_network
        influence_lab.theory.linear_network = linear_network
    return "survived"


def main() -> int:
    survivors = 0
    for chapter, changed, right, wrong in IN_CHAPTERS:
        start = time.perf_counter()
        outcome = run_chapter(chapter, changed, right, wrong)
        survivors += outcome == "survived"
        print(f"{chapter}: {right!r} → {wrong!r} ({time.perf_counter() - start:.0f} s)")
        print(f"    {outcome}", flush=True)
    print(f"{len(IN_CHAPTERS) - survivors} of {len(IN_CHAPTERS)} changes stopped their chapter")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
