"""Each closed form against a slow, obvious twin: autograd, a solve, a quadrature or a refit.

`CHECKS` maps a name to a function that takes the module of closed forms and returns its largest
relative error. The module is an argument so that mutated copies can be checked too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import torch
from torch.autograd.functional import hessian

SHAPES = ((1, 1), (1, 3), (3, 1), (2, 2), (5, 2), (3, 4))
TOLERANCE = 1e-8


def cases(seed: int, n: int, unit: bool = False) -> Iterator[tuple]:
    """W, x, deltas, ε, λ over all shapes, ε = 10 among them."""
    rng = np.random.default_rng(seed)
    for number, (k, d) in enumerate(SHAPES * 3):
        deltas = rng.normal(size=(n, d))
        if unit:
            deltas /= np.linalg.norm(deltas, axis=1, keepdims=True)
        eps = 10.0 if number % 6 == 5 else rng.uniform(0.1, 3)
        yield rng.normal(size=(k, d)), rng.normal(size=(n, d)), deltas, eps, rng.uniform(0.05, 2)


def error(found: object, expected: object) -> float:
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    if found.shape != expected.shape:
        return float("inf")
    return float(np.max(np.abs(found - expected)) / max(np.max(np.abs(expected)), 1e-30))


def derivatives(loss: Callable, *arguments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and Hessian of a loss in all its arguments, stacked one after the other."""
    shapes = [a.shape for a in arguments]
    flat = torch.cat([torch.as_tensor(a).reshape(-1) for a in arguments])

    def of_flat(vector: torch.Tensor) -> torch.Tensor:
        parts = torch.split(vector, [int(np.prod(s)) for s in shapes])
        return loss(*(p.reshape(s) for p, s in zip(parts, shapes, strict=True)))

    return torch.func.grad(of_flat)(flat).numpy(), hessian(of_flat, flat).numpy()


def squared(x: np.ndarray, delta: np.ndarray, eps: float) -> Callable:
    x, x_hat = torch.as_tensor(x), torch.as_tensor(x + eps * delta)
    return lambda W: (W @ x - W @ x_hat).square().sum()


def solved(g: np.ndarray, H: np.ndarray, lam: float) -> float:
    inverse = (
        np.linalg.pinv(H, rcond=1e-10) if lam == 0 else np.linalg.inv(H + lam * np.eye(len(H)))
    )
    return -g @ inverse @ g


def supervised(net: ModuleType) -> float:
    rng, worst = np.random.default_rng(0), 0.0
    for W, x, *_ in cases(0, 1):
        v, y, x = rng.normal(size=len(W)), rng.normal(), x[0]
        g, H = derivatives(lambda W, v: (y - v @ W @ torch.as_tensor(x)) ** 2 / 2, W, v)  # noqa: B023
        in_W, in_v = net.supervised_gradients(W, v, x, y)
        h_ww, h_wv, h_vv = net.supervised_hessian(W, v, x, y)
        worst = max(
            worst,
            error(np.concatenate([in_W.ravel(), in_v]), g),
            error(np.block([[h_ww, h_wv], [h_wv.T, h_vv]]), H),
        )
    return worst


def one_example(net: ModuleType) -> float:
    worst = 0.0
    for unit in (True, False):
        for W, x, deltas, eps, lam in cases(1, 1, unit):
            delta, L = deltas[0], squared(x[0], deltas[0], eps)
            g, H = derivatives(L, W)
            errors = [
                error(net.loss(W, delta, eps), L(torch.as_tensor(W))),
                error(net.loss_gradient(W, delta, eps).ravel(), g),
                error(net.loss_hessian(len(W), delta, eps), H),
                error(net.influence_own(W, delta, eps, lam), solved(g, H, lam)),
                error(net.influence_own(W, delta, eps), solved(g, H, 0.0)),
            ]
            if unit:
                errors.append(error(net.influence_printed(W, delta, eps, lam), solved(g, H, lam)))
                h = 1e-6
                sizes = [
                    solved(*derivatives(squared(x[0], delta, e), W), lam)
                    for e in (eps * (1 - h), eps * (1 + h))
                ]
                slope = np.log(sizes[1] / sizes[0]) / np.log((1 + h) / (1 - h))
                # A difference quotient is good to about eight digits at best.
                errors.append(error(net.scaling_exponent(eps, lam), slope) * 1e-3)
            worst = max(worst, *errors)
    return worst


def data_set(net: ModuleType) -> float:
    worst = 0.0
    for W, x, deltas, eps, lam in cases(2, 5):
        pairs = [derivatives(squared(a, b, eps), W) for a, b in zip(x, deltas, strict=True)]
        mean = np.mean([H for _, H in pairs], axis=0)
        for damping in (lam, 0.0):
            expected = [solved(g, mean, damping) for g, _ in pairs]
            worst = max(worst, error(net.influence_data_set(W, deltas, eps, damping), expected))
    return worst


def change(net: ModuleType) -> float:
    rng, worst = np.random.default_rng(3), 0.0

    def score(W: np.ndarray, x: np.ndarray, delta: np.ndarray, eps: float) -> float:
        return solved(*derivatives(squared(x, delta, eps), W), 0.0)

    for W, x, deltas, eps, _ in cases(3, 1, unit=True):
        x, delta = x[0], deltas[0]
        start, s = score(W, x, delta, eps), np.linalg.norm(W @ delta)
        E = rng.normal(size=W.shape)
        expected = score(W + E, x, delta, eps) - start
        worst = max(worst, error(net.influence_change(W, E, delta, eps), expected))
        for eta in (0.3 * s, 2 * s):
            best = np.outer(W @ delta, delta) / s
            ends = [score(W + f * best, x, delta, eps) - start for f in (eta, -min(s, eta))]
            found = net.influence_change_range(W, delta, eps, eta)
            random = E * eta / np.linalg.norm(E)
            moved = score(W + random, x, delta, eps) - start
            slack = 1e-9 * abs(start)
            outside = not found[0] - slack <= moved <= found[1] + slack
            worst = max(worst, error(found, ends), float("inf") if outside else 0.0)
    return worst


def groups(net: ModuleType) -> float:
    worst = 0.0
    for W, x, deltas, eps, _ in cases(4, 6):
        pairs = [derivatives(squared(a, b, eps), W) for a, b in zip(x, deltas, strict=True)]
        total = np.sum([H for _, H in pairs], axis=0)
        g = np.sum([g for g, _ in pairs[:3]], axis=0)
        summed = derivatives(squared(x[0], deltas[:3].sum(0), eps), W)
        alone = sum(solved(*derivatives(squared(x[0], row, eps), W), 0.0) for row in deltas[:3])
        printed = solved(*summed, 0.0)
        worst = max(
            worst,
            error(net.group_influence(W, deltas[:3], deltas, eps), solved(g, total, 0.0)),
            error(net.group_printed(W, deltas[:3], eps), printed),
            error(net.group_remainder(W, deltas[:3], eps), printed - alone),
        )
    return worst


def expectations(net: ModuleType) -> float:
    rng, worst = np.random.default_rng(5), 0.0
    for W, x, deltas, eps, _ in cases(5, 4, unit=True):
        p = rng.dirichlet(np.ones(4))
        scores = [solved(*derivatives(squared(x[0], row, eps), W), 0.0) for row in deltas]
        worst = max(
            worst,
            error(net.expected_influence(W, deltas.T @ (p[:, None] * deltas), eps), p @ scores),
        )
        d = len(x[0])
        if d > 1:
            # d − 1 orthonormal directions have the second moment of the uniform law around x.
            rows = np.linalg.qr(np.column_stack([x[0], rng.normal(size=(d, d - 1))]))[0].T[1:]
            mean = np.mean([solved(*derivatives(squared(x[0], row, eps), W), 0.0) for row in rows])
            worst = max(worst, error(net.expected_influence_tangent(W, x[0], eps), mean))
    return worst


def noise(net: ModuleType) -> float:
    rng, worst = np.random.default_rng(6), 0.0
    node, weight = np.polynomial.hermite_e.hermegauss(3)
    for W, *_ in cases(6, 1):
        d = W.shape[1]
        mu, sigma = rng.normal(), rng.uniform(0.1, 1)
        z = np.stack(np.meshgrid(*[node] * d, indexing="ij"), -1).reshape(-1, d)
        w = np.prod(np.stack(np.meshgrid(*[weight] * d, indexing="ij"), -1), -1).ravel()
        w /= w.sum()
        L = np.array([np.sum((W @ (mu + sigma * row)) ** 2) for row in z])
        mean, variance = w @ L, w @ (L - w @ L) ** 2
        draws = net.draws_needed(mean, variance, 0.05)
        worst = max(
            worst,
            error(net.noise_mean(W, mu, sigma), mean),
            error(net.noise_variance(W, mu, sigma), variance),
            error(np.sqrt(variance / draws) / mean, 0.05),
        )
    return worst


def leverage(net: ModuleType) -> float:
    rng, worst = np.random.default_rng(7), 0.0
    for n, p in ((6, 3), (4, 7), (5, 5), (3, 1)):
        G, ridge = rng.normal(size=(n, p)), 0.3
        h = np.array([g @ np.linalg.solve(G.T @ G + ridge * np.eye(p), g) for g in G])
        whole = G @ np.linalg.solve(G.T @ G + ridge * np.eye(p), G.T)
        copied = np.vstack([G[:1], G[:1], G])
        shared = copied[0] @ np.linalg.solve(copied.T @ copied + ridge * np.eye(p), copied[0])
        H = G.T @ G / n + ridge / n * np.eye(p)
        without = G[0] @ np.linalg.solve(H - np.outer(G[0], G[0]) / n, G[0])
        worst = max(
            worst,
            error(net.ridge_leverages(G, ridge), h),
            error(net.ridge_leverages(G.astype(object), ridge), h),
            error(net.ridge_leverages(G), np.diag(G @ np.linalg.pinv(G))),
            error(net.leverage_matrix(G, ridge), whole),
            error(net.leverage_matrix(G.astype(object), ridge), whole),
            error(net.leverage_matrix(G), G @ np.linalg.pinv(G)),
            error(net.effective_dimension(G, ridge), h.sum()),
            error(net.duplicate_leverage(h[0], 3), shared),
            error(net.leave_one_out_score(n * h[0], n), without),
        )
    return worst


def cosine(net: ModuleType) -> float:
    worst = 0.0
    for W, x, deltas, eps, _ in cases(8, 1):
        x, delta = x[0], deltas[0]
        a, u = W @ x, W @ delta
        eps = min(eps, 0.5 * (a @ a) / abs(a @ u))
        if min(W.shape) == 1:
            continue

        def L(
            W: torch.Tensor, step: float, x: np.ndarray = x, delta: np.ndarray = delta
        ) -> torch.Tensor:
            a, b = W @ torch.as_tensor(x), W @ torch.as_tensor(x + step * delta)
            return 1 - a @ b / (a.norm() * b.norm())

        # At leading order the relative error is of the order of the step.
        step = 1e-3
        gradient = torch.func.grad(L)(torch.as_tensor(W), step).numpy()
        leading = L(torch.as_tensor(W), step)
        size = 1 + np.linalg.norm(u) / np.linalg.norm(a)
        worst = max(
            worst,
            error(net.cosine_loss(W, x, delta, eps), L(torch.as_tensor(W), eps)),
            error(net.cosine_loss_leading(W, x, delta, step), leading) / size * 1e-7,
            error(net.cosine_gradient_leading(W, x, delta, step), gradient) / size**2 * 1e-7,
        )
    return worst


def anchored(net: ModuleType) -> float:
    worst = 0.0

    def fit(anchor: np.ndarray, rows: np.ndarray, n: int, eps: float, lam: float) -> np.ndarray:
        left = np.vstack([np.sqrt(2 * eps**2 / n) * rows, np.sqrt(lam) * np.eye(rows.shape[1])])
        right = np.vstack([np.zeros((len(rows), len(anchor))), np.sqrt(lam) * anchor.T])
        return np.linalg.lstsq(left, right, rcond=None)[0].T

    for anchor, _, deltas, eps, lam in cases(9, 7):
        W = fit(anchor, deltas, 7, eps, lam)
        ell = net.anchored_leverages(deltas, eps, lam)
        own = eps**2 * np.sum((W @ deltas[0]) ** 2)
        without, fewer = (fit(anchor, deltas[s:], 7, eps, lam) for s in (1, 3))
        worst = max(
            worst,
            error(net.anchored_minimiser(anchor, deltas, eps, lam), W),
            error(
                net.anchored_refit_loss(own, ell[0]), eps**2 * np.sum((without @ deltas[0]) ** 2)
            ),
            error(net.anchored_group_refit(W, deltas[:3], deltas, eps, lam), deltas[:3] @ fewer.T),
        )
    return worst


CHECKS: dict[str, Callable[[ModuleType], float]] = {
    f.__name__: f
    for f in (  # the quickest first, as most mistakes are found by several
        anchored,
        noise,
        cosine,
        leverage,
        one_example,
        data_set,
        expectations,
        change,
        groups,
        supervised,
    )
}
