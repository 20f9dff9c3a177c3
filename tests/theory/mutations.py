"""Wrong formulas on purpose: each of them has to make a check fail.

`IN_CLOSED_FORMS` changes `influence_lab/linear_network.py`; `test_mutations.py` runs them in
every test run. `IN_CHAPTERS` changes a closed form or a chapter and runs the chapter's cells, to
see that its verdict is refused: `python tests/theory/mutations.py`, a few minutes.
"""

# ruff: noqa: E501

from __future__ import annotations

import contextlib
import io
import sys
import time
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "core" / "influence_lab" / "linear_network.py"

IN_CLOSED_FORMS = (
    ("sign of the residual", "return -r * np.outer(v, x), -r", "return r * np.outer(v, x), -r"),
    ("outer product transposed", "-r * np.outer(v, x),", "-r * np.outer(x, v).reshape(W.shape),"),
    ("⊗ swapped in H_WW", "np.outer(v, v), np.outer(x, x)", "np.outer(x, x), np.outer(v, v)"),
    ("⊗ swapped in H_Wv", "np.kron(v, x)", "np.kron(x, v)"),
    ("sign in H_Wv", "W @ x) - r * np.kron", "W @ x) + r * np.kron"),
    ("missing square in the loss", "eps**2 * _square(delta @ W.T)\n", "eps * _square(delta @ W.T)\n"),
    ("factor 2 in the gradient", "2 * eps**2 * np.outer(W @ delta", "eps**2 * np.outer(W @ delta"),
    ("⊗ swapped in the Hessian", "np.kron(np.eye(k, dtype=int), 2 * eps**2 * np.outer(delta, delta))",
     "np.kron(2 * eps**2 * np.outer(delta, delta), np.eye(k, dtype=int))"),
    ("factor 2 in Theorem 1", "-4 * eps**4 * _square(delta @ W.T) /", "-2 * eps**4 * _square(delta @ W.T) /"),
    ("sign in Theorem 1", "-4 * eps**4 * _square(delta @ W.T) /", "4 * eps**4 * _square(delta @ W.T) /"),
    ("factor 2 below in Theorem 1", "/ (lam + 2 * eps**2)\n", "/ (lam + eps**2)\n"),
    ("missing length of delta", "-4 * eps**4 * size *", "-4 * eps**4 *"),
    ("length of delta below", "(lam + 2 * eps**2 * size)", "(lam + 2 * eps**2)"),
    ("power of epsilon", "-4 * eps**4 * _square(deltas @ W.T) * reach", "-4 * eps**2 * _square(deltas @ W.T) * reach"),
    ("mean becomes sum", "deltas.T @ deltas / len(deltas)", "deltas.T @ deltas"),
    ("factor 2 in the curvature", "2 * eps**2 * _second_moment", "eps**2 * _second_moment"),
    ("damping forgotten", " + lam * np.eye(d, dtype=int)", " + 0 * np.eye(d, dtype=int)"),
    ("exponent", "4 * (lam + eps**2) /", "2 * (lam + eps**2) /"),
    ("sign in the change", "- 2 * eps**2 * _square(delta @ E.T)", "+ 2 * eps**2 * _square(delta @ E.T)"),
    ("lower end", "- 2 * eps**2 * eta**2", "- 2 * eps**2 * eta"),
    ("upper end", "4 * eps**2 * s * tau - 2 * eps**2 * tau**2", "4 * eps**2 * s * eta - 2 * eps**2 * tau**2"),
    ("group: square after the sum", "_square((deltas @ W.T).sum(0))", "_square(deltas @ W.T).sum(0)"),
    ("group remainder", "return -4 * eps**2 * sum(", "return -2 * eps**2 * sum("),
    ("group: cross-leverage dropped", "(u @ u.T * h).sum()", "(u @ u.T).sum()"),
    ("expected influence", "-2 * eps**2 * np.trace", "-4 * eps**2 * np.trace"),
    ("tangent: d for d − 1", "(len(x) - 1)", "len(x)"),
    ("tangent: sign", "(W * W).sum() - _square(W @ x)", "(W * W).sum() + _square(W @ x)"),
    ("noise mean", "mu**2 * _square(W.sum(1))", "mu * _square(W.sum(1))"),
    ("noise variance", "4 * sigma**2 * mu**2", "2 * sigma**2 * mu**2"),
    ("draws", "(relative_error * mean) ** 2", "(relative_error * mean)"),
    ("effective dimension", "(s / (s + ridge))", "(s / (s + 2 * ridge))"),
    ("leverage", "(s[kept] ** 2 + ridge)", "(s[kept] + ridge)"),
    ("leverage matrix: signs", "return factor @ factor.T", "return abs(factor) @ abs(factor).T"),
    ("leverage matrix: damping", "return G @ _inverse(G.T @ G + ridge *", "return G @ _inverse(G.T @ G + 2 * ridge *"),
    ("duplicates", "(1 + (copies - 1) * first)", "(1 + copies * first)"),
    ("leave one out", "score / (1 - score / n)", "score / (1 + score / n)"),
    ("cosine: projection", "p = u - alpha * a\n    t_squared", "p = u\n    t_squared"),
    ("cosine: missing square", "eps**2 * (p @ p) / ((a @ a) * (1 + eps * alpha) ** 2)",
     "eps**2 * (p @ p) / ((a @ a) * (1 + eps * alpha))"),
    ("cosine leading: factor", "/ (2 * (a @ a))", "/ (a @ a)"),
    ("cosine gradient: sign", "np.outer(p, q) - (p @ p)", "np.outer(p, q) + (p @ p)"),
    ("anchored minimiser", "return lam * anchor @", "return anchor @"),
    ("anchored leverage", "return 2 * eps**2 / len(deltas) *", "return eps**2 / len(deltas) *"),
    ("refit: missing square", "loss_at_optimum / (1 - leverage) ** 2", "loss_at_optimum / (1 - leverage)"),
    ("group refit: sign", "np.eye(len(members)) - coupling", "np.eye(len(members)) + coupling"),
)  # fmt: skip
"""(what is wrong, right text, wrong text)"""

IN_CHAPTERS = (
    ("theorem-1", "-4 * eps**4 * size *", "-2 * eps**4 * size *", SOURCE),
    ("theorem-1", "-4 * eps**4 * _square(deltas @ W.T) * reach", "-4 * eps**4 * reach", SOURCE),
    ("lemmas", "np.outer(v, v), np.outer(x, x)", "np.outer(x, x), np.outer(v, v)", SOURCE),
    ("lemmas", "W @ x) - r * np.kron", "W @ x) + r * np.kron", SOURCE),
    ("properties", "- 2 * eps**2 * _square(delta @ E.T)", "- eps**2 * _square(delta @ E.T)", SOURCE),
    ("properties", "4 * (lam + eps**2) /", "4 * (lam + 2 * eps**2) /", SOURCE),
    ("composition", "(u @ u.T * h).sum()", "(u @ u.T).sum()", SOURCE),
    ("composition", "return -4 * eps**2 * sum(", "return -2 * eps**2 * sum(", SOURCE),
    ("augmentations", "(len(x) - 1)", "len(x)", SOURCE),
    ("augmentations", "draw**2", "draw", None),
    ("noise", "4 * sigma**2 * mu**2", "2 * sigma**2 * mu**2", SOURCE),
    ("cosine", "(q - 1) * g", "q * g", None),
    ("cosine", "np.outer(p, q) - (p @ p)", "np.outer(p, q) + (p @ p)", SOURCE),
    ("leverage", "(1 + (copies - 1) * first)", "(1 + copies * first)", SOURCE),
    ("leverage", "return factor @ factor.T", "return abs(factor) @ abs(factor).T", SOURCE),
    ("collapse", "loss_at_optimum / (1 - leverage) ** 2", "loss_at_optimum / (1 - leverage)", SOURCE),
    ("equations", "+ sign * gradient", "- sign * gradient", None),
)  # fmt: skip
"""(chapter, right text, wrong text, changed file; None for the chapter itself)"""


def mutated(right: str, wrong: str) -> ModuleType:
    """The module of closed forms with every occurrence of a text changed."""
    source = SOURCE.read_text(encoding="utf-8")
    if right not in source:
        raise LookupError(f"{SOURCE.name} has no {right!r} to change")
    module = ModuleType("influence_lab.linear_network")
    exec(compile(source.replace(right, wrong), str(SOURCE), "exec"), module.__dict__)
    return module


def run_chapter(name: str, right: str, wrong: str, changed: Path | None) -> str:
    """Run a chapter's cells with one change; the error that stops it, or "survived"."""
    import jupytext
    import matplotlib

    import influence_lab

    matplotlib.use("agg")
    from influence_lab import linear_network

    chapter = ROOT / "book" / "theory" / f"{name}.md"
    cells = [c.source for c in jupytext.read(chapter).cells if c.cell_type == "code"]
    module = linear_network
    if changed is None:
        if not any(right in cell for cell in cells):
            raise LookupError(f"{chapter.name} has no {right!r} to change")
        cells = [cell.replace(right, wrong) for cell in cells]
    else:
        module = mutated(right, wrong)
    sys.modules["influence_lab.linear_network"] = influence_lab.linear_network = module
    try:
        namespace: dict = {"__name__": "__main__"}
        with contextlib.redirect_stdout(io.StringIO()):
            for cell in cells:
                exec(compile(cell, str(chapter), "exec"), namespace)
    except AssertionError as error:
        return str(error) or "an assertion of the chapter"
    finally:
        sys.modules["influence_lab.linear_network"] = linear_network
        influence_lab.linear_network = linear_network
    return "survived"


def main() -> int:
    survivors = 0
    for chapter, right, wrong, changed in IN_CHAPTERS:
        start = time.perf_counter()
        outcome = run_chapter(chapter, right, wrong, changed)
        survivors += outcome == "survived"
        print(f"{chapter}: {right!r} → {wrong!r} ({time.perf_counter() - start:.0f} s)")
        print(f"    {outcome}", flush=True)
    print(f"{len(IN_CHAPTERS) - survivors} of {len(IN_CHAPTERS)} changes stopped their chapter")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
