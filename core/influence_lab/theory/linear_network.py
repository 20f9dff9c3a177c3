"""Closed forms for the linear encoder x ↦ Wx of the paper's theory (sections 3 and C).

W (k, d); an example is perturbed as x̂ = x + εδ; its loss is |Wx − Wx̂|² = ε²|Wδ|².
`deltas` (n, d) contains one δ per row, Σ = (1/n) Σ δδᵀ, vec is row-major (the rows of W in
sequence), ⊗ is the Kronecker product, and A⁺ is the pseudo-inverse, which replaces A⁻¹ in the
limit λ → 0.
An influence is signed as in Equation 6: I = −gᵀ(H + λI)⁻¹g. "Own" means that H is the
Hessian of the example's own loss, "data set" that it is the mean over all examples.

Each function takes float64 arrays or object arrays of SymPy expressions.
"""

from fractions import Fraction

import numpy as np


def _square(a: np.ndarray) -> np.ndarray:
    return (a * a).sum(-1)


def _inverse(a: np.ndarray, singular: bool) -> np.ndarray:
    if a.dtype == object:
        import sympy  # only a chapter's symbolic check comes here

        return np.array(sympy.Matrix(a).inv(), dtype=object)
    return np.linalg.pinv(a, hermitian=True) if singular else np.linalg.inv(a)


def _second_moment(deltas: np.ndarray) -> np.ndarray:
    """Σ = (1/n) Σ_j δ_j δ_jᵀ, (d, d)."""
    return deltas.T @ deltas / len(deltas)


def _curvature(deltas: np.ndarray, eps: float, lam: float) -> np.ndarray:
    """2ε²Σ + λI, (d, d): one block of the data-set Hessian."""
    d = deltas.shape[1]
    return 2 * eps**2 * _second_moment(deltas) + lam * np.eye(d, dtype=int)


# Supervised network f(x) = vᵀWx, loss ½(y − vᵀWx)²


def supervised_gradients(W: np.ndarray, v: np.ndarray, x: np.ndarray, y: float) -> tuple:
    """∇_W L = −r v xᵀ (k, d) and ∇_v L = −r Wx (k,), r = y − vᵀWx. Lemma 1."""
    r = y - v @ W @ x
    return -r * np.outer(v, x), -r * (W @ x)


def supervised_hessian(W: np.ndarray, v: np.ndarray, x: np.ndarray, y: float) -> tuple:
    """Blocks of the Hessian in (vec W, v). Lemma 2, with its H_Wv corrected.

    H_WW = vvᵀ ⊗ xxᵀ (kd, kd); H_Wv = (v ⊗ x)(Wx)ᵀ − r (I_k ⊗ x) (kd, k);
    H_vv = Wx(Wx)ᵀ (k, k).
    """
    k = len(v)
    r = y - v @ W @ x
    h_ww = np.kron(np.outer(v, v), np.outer(x, x))
    h_wv = np.outer(np.kron(v, x), W @ x) - r * np.kron(np.eye(k, dtype=int), x[:, None])
    return h_ww, h_wv, np.outer(W @ x, W @ x)


# Squared invariance loss


def loss(W: np.ndarray, delta: np.ndarray, eps: float) -> np.ndarray:
    """L = ε²|Wδ|². Lemma 3. `delta` (d,) gives a number, (n, d) gives (n,)."""
    return eps**2 * _square(delta @ W.T)


def loss_gradient(W: np.ndarray, delta: np.ndarray, eps: float) -> np.ndarray:
    """∇_W L = 2ε² Wδδᵀ, (k, d). Lemma 4."""
    return 2 * eps**2 * np.outer(W @ delta, delta)


def loss_hessian(k: int, delta: np.ndarray, eps: float) -> np.ndarray:
    """∇²L = I_k ⊗ 2ε²δδᵀ, (kd, kd), of rank k. Lemma 4, corrected for k > 1."""
    return np.kron(np.eye(k, dtype=int), 2 * eps**2 * np.outer(delta, delta))


# Influence of one example


def influence_printed(W: np.ndarray, delta: np.ndarray, eps: float, lam: float = 0.0) -> np.ndarray:
    """−4ε⁴|Wδ|²/(λ + 2ε²): Theorem 1 as printed, for |δ| = 1; at λ = 0 its limit."""
    return -4 * eps**4 * _square(delta @ W.T) / (lam + 2 * eps**2)


def influence_own(W: np.ndarray, delta: np.ndarray, eps: float, lam: float = 0.0) -> np.ndarray:
    """−4ε⁴|δ|²|Wδ|²/(λ + 2ε²|δ|²): Theorem 1 for every δ ≠ 0, own Hessian."""
    size = _square(delta)
    return -4 * eps**4 * size * _square(delta @ W.T) / (lam + 2 * eps**2 * size)


def influence_data_set(
    W: np.ndarray, deltas: np.ndarray, eps: float, lam: float = 0.0
) -> np.ndarray:
    """−4ε⁴|Wδ_i|² δ_iᵀ(2ε²Σ + λI)⁻¹δ_i, (n,): Theorem 1 with Equation 6's Hessian.

    At λ = 0 it is −2ε²|Wδ_i|² · n h_i with the leverage h_i of `leverages`.
    """
    inverse = _inverse(_curvature(deltas, eps, lam), singular=lam == 0)
    reach = ((deltas @ inverse) * deltas).sum(-1)
    return -4 * eps**4 * _square(deltas @ W.T) * reach


def scaling_exponent(eps: float, lam: float) -> float:
    """d log|I| / d log ε = 4(λ + ε²)/(λ + 2ε²) for |δ| = 1: 4 for small ε, 2 for large."""
    return 4 * (lam + eps**2) / (lam + 2 * eps**2)


# Change of W


def influence_change(W: np.ndarray, E: np.ndarray, delta: np.ndarray, eps: float) -> np.ndarray:
    """I(W + E) − I(W) = −4ε²⟨Wδ, Eδ⟩ − 2ε²|Eδ|², own Hessian, λ → 0."""
    return -4 * eps**2 * (delta @ W.T * (delta @ E.T)).sum(-1) - 2 * eps**2 * _square(delta @ E.T)


def influence_change_range(W: np.ndarray, delta: np.ndarray, eps: float, eta: float) -> tuple:
    """Sharp lower and upper end of I(W + E) − I(W) over |E|_F ≤ η, for |δ| = 1.

    With s = |Wδ| and τ = min(s, η): from −4ε²sη − 2ε²η² to 4ε²sτ − 2ε²τ².
    """
    s = np.sqrt(_square(W @ delta))
    tau = min(s, eta)
    low = -4 * eps**2 * s * eta - 2 * eps**2 * eta**2
    return low, 4 * eps**2 * s * tau - 2 * eps**2 * tau**2


# Groups of examples


def group_printed(W: np.ndarray, deltas: np.ndarray, eps: float) -> np.ndarray:
    """−2ε²|Σ_S Wδ_i|²: what Claim 6 calls the influence of a subset (rows of `deltas`)."""
    return -2 * eps**2 * _square((deltas @ W.T).sum(0))


def group_remainder(W: np.ndarray, deltas: np.ndarray, eps: float) -> float:
    """R(S) = −4ε² Σ_{i<j} (Wδ_i)ᵀ(Wδ_j), as printed in Claim 6."""
    u = deltas @ W.T
    gram = u @ u.T
    return -4 * eps**2 * sum(gram[i, j] for i in range(len(u)) for j in range(i + 1, len(u)))


def group_influence(W: np.ndarray, members: np.ndarray, deltas: np.ndarray, eps: float) -> float:
    """−2ε² Σ_{i,j∈S} (Wδ_i)ᵀ(Wδ_j) h_ij, h_ij = δ_iᵀ(Σ_m δ_mδ_mᵀ)⁺δ_j.

    The influence of the whole subset on its own loss, λ → 0, with the Hessian of the sum
    over `deltas` (n, d). With `deltas = deltas[members]` it is the group's own Hessian.

    Args:
        members: (s, d), the directions of the subset.
        deltas: (n, d), the directions of all examples, those of the subset among them.
    """
    u = members @ W.T
    h = members @ _inverse(deltas.T @ deltas, singular=True) @ members.T
    return -2 * eps**2 * (u @ u.T * h).sum()


# Random directions


def expected_influence(W: np.ndarray, moment: np.ndarray, eps: float) -> float:
    """−2ε² tr(WᵀWΣ) with Σ = E δδᵀ (d, d). Definition 1, own Hessian, λ → 0."""
    return -2 * eps**2 * np.trace(W.T @ W @ moment)


def expected_influence_tangent(W: np.ndarray, x: np.ndarray, eps: float) -> float:
    """−2ε²(‖W‖² − |Wx|²/|x|²)/(d − 1): δ uniform on the unit sphere orthogonal to x."""
    return -2 * eps**2 * ((W * W).sum() - _square(W @ x) / _square(x)) / (len(x) - 1)


def noise_mean(W: np.ndarray, mu: float, sigma: float) -> float:
    """E|Wη|² = σ²‖W‖² + μ²|W1|² for η ~ N(μ1, σ²I)."""
    return sigma**2 * (W * W).sum() + mu**2 * _square(W.sum(1))


def noise_variance(W: np.ndarray, mu: float, sigma: float) -> float:
    """Var|Wη|² = 2σ⁴‖WᵀW‖² + 4σ²μ²|WᵀW1|² for η ~ N(μ1, σ²I)."""
    gram = W.T @ W
    return 2 * sigma**4 * (gram * gram).sum() + 4 * sigma**2 * mu**2 * _square(gram.sum(1))


def draws_needed(mean: float, variance: float, relative_error: float) -> float:
    """Var/(τ² mean²): the number of draws whose average has relative standard error τ."""
    return variance / (relative_error * mean) ** 2


# Empirical Fisher


def ridge_leverages(G: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """h_i = [G(GᵀG + ρI)⁻¹Gᵀ]_ii in [0, 1], (n,); the plain leverage at ρ = 0.

    With ρ = nλ the score of an empirical Fisher is g_iᵀ(GᵀG/n + λI)⁻¹g_i = n h_i.

    Args:
        G: (n, p), one gradient (or direction δ) per row.
        ridge: ρ ≥ 0.
    """
    if G.dtype == object:
        inverse = _inverse(G.T @ G + ridge * np.eye(G.shape[1], dtype=int), singular=False)
        return ((G @ inverse) * G).sum(-1)
    return (_leverage_factor(G, ridge) ** 2).sum(1)


def leverage_matrix(G: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """L = G(GᵀG + ρI)⁻¹Gᵀ, (n, n), with the diagonal `ridge_leverages`.

    With ρ = nλ the influence of example i on example q of an empirical Fisher,
    −g_qᵀ(GᵀG/n + λI)⁻¹g_i, is −n L_qi.
    """
    if G.dtype == object:
        return G @ _inverse(G.T @ G + ridge * np.eye(G.shape[1], dtype=int), singular=False) @ G.T
    factor = _leverage_factor(G, ridge)
    return factor @ factor.T


def _leverage_factor(G: np.ndarray, ridge: float) -> np.ndarray:
    """F (n, r) with FFᵀ = G(GᵀG + ρI)⁻¹Gᵀ."""
    # G's own singular vectors, because GᵀG would square its condition number.
    u, s, _ = np.linalg.svd(G, full_matrices=False)
    kept = s > s[0] * max(G.shape) * np.finfo(float).eps
    return u[:, kept] * np.sqrt(s[kept] ** 2 / (s[kept] ** 2 + ridge))


def effective_dimension(G: np.ndarray, ridge: float) -> float:
    """Σ_j s_j²/(s_j² + ρ) over the singular values s_j of G; the sum of `ridge_leverages`."""
    s = np.linalg.svd(G, compute_uv=False) ** 2
    return float((s / (s + ridge)).sum())


def duplicate_leverage(first: float, copies: int) -> float:
    """h/(1 + (m − 1)h): leverage of each of m equal rows, h that of a single one."""
    return first / (1 + (copies - 1) * first)


def leave_one_out_score(score: np.ndarray, n: int) -> np.ndarray:
    """s/(1 − s/n): the score g_iᵀH⁻¹g_i after g_ig_iᵀ/n is subtracted from H."""
    return score / (1 - score / n)


# Cosine loss 1 − cos(Wx, Wx̂)


def cosine_loss(W: np.ndarray, x: np.ndarray, delta: np.ndarray, eps: float) -> float:
    """1 − (1 + t²)^(−1/2), t = ε|p|/(|a|(1 + εα)), where 1 + εα > 0; exact.

    a = Wx, α = aᵀWδ/|a|², and p = Wδ − αa is the part of Wδ orthogonal to a.
    """
    a, u = W @ x, W @ delta
    alpha = (a @ u) / (a @ a)
    p = u - alpha * a
    t_squared = eps**2 * (p @ p) / ((a @ a) * (1 + eps * alpha) ** 2)
    root = (1 + t_squared) ** Fraction(1, 2)
    # 1 − 1/root without its cancellation at small t
    return t_squared / (root * (1 + root))


def cosine_loss_leading(W: np.ndarray, x: np.ndarray, delta: np.ndarray, eps: float) -> float:
    """ε²|P⊥Wδ|²/(2|Wx|²), P⊥ the projection orthogonal to Wx; Proposition 3, corrected."""
    a, u = W @ x, W @ delta
    return eps**2 * ((u @ u) - (a @ u) ** 2 / (a @ a)) / (2 * (a @ a))


def cosine_gradient_leading(
    W: np.ndarray, x: np.ndarray, delta: np.ndarray, eps: float
) -> np.ndarray:
    """(ε²/|a|²)(p qᵀ − |p|²/|a|² a xᵀ), (k, d), q = δ − αx; ε² term of the gradient."""
    a, u = W @ x, W @ delta
    alpha = (a @ u) / (a @ a)
    p, q = u - alpha * a, delta - alpha * x
    return eps**2 / (a @ a) * (np.outer(p, q) - (p @ p) / (a @ a) * np.outer(a, x))


# Anchored problem: J(W) = (1/n) Σ ε²|Wδ_i|² + λ/2 ‖W − W₀‖²


def anchored_minimiser(
    anchor: np.ndarray, deltas: np.ndarray, eps: float, lam: float
) -> np.ndarray:
    """W* = λ W₀ (2ε²Σ + λI)⁻¹, (k, d), λ > 0."""
    return lam * anchor @ _inverse(_curvature(deltas, eps, lam), singular=False)


def anchored_leverages(deltas: np.ndarray, eps: float, lam: float) -> np.ndarray:
    """ℓ_i = (2ε²/n) δ_iᵀ(2ε²Σ + λI)⁻¹δ_i in [0, 1), (n,)."""
    inverse = _inverse(_curvature(deltas, eps, lam), singular=False)
    return 2 * eps**2 / len(deltas) * ((deltas @ inverse) * deltas).sum(-1)


def anchored_refit_loss(loss_at_optimum: np.ndarray, leverage: np.ndarray) -> np.ndarray:
    """L_i/(1 − ℓ_i)²: the example's own loss at the exact refit without it, with the same λ."""
    return loss_at_optimum / (1 - leverage) ** 2


def anchored_group_refit(
    W: np.ndarray, members: np.ndarray, deltas: np.ndarray, eps: float, lam: float
) -> np.ndarray:
    """(I − Λ)⁻¹U, (s, k): the rows W_{−S}δ_i after an exact refit without the subset.

    Λ = (2ε²/n) Δ(2ε²Σ + λI)⁻¹Δᵀ and U = ΔWᵀ, with Δ = `members` (s, d) and W = W*.
    """
    inverse = _inverse(_curvature(deltas, eps, lam), singular=False)
    coupling = 2 * eps**2 / len(deltas) * members @ inverse @ members.T
    return np.linalg.solve(np.eye(len(members)) - coupling, members @ W.T)
