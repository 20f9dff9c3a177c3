"""Influence-SSL: label-free influence scores of images on a self-supervised encoder.

    I_i = −g_iᵀ(H + λI)⁻¹g_i,    g_i = ∇_θ [1 − cos(f(x_i), f(x̂_i))],    x̂_i = x_i + N(0.05, 0.2)

Start with :func:`score`, or with :class:`InfluenceScorer` for every setting.
"""

from influence_ssl import starting as starting  # first, as what follows takes a second
from influence_ssl.curvature import EmpiricalFisher, ExactHessian, Identity, LoGra, Relative
from influence_ssl.errors import InfluenceError
from influence_ssl.influence import Influence
from influence_ssl.objectives import Alignment, Invariance, Supervised
from influence_ssl.perturbations import GaussianNoise
from influence_ssl.scorer import InfluenceScorer, score
from influence_ssl.scores import Scores
from influence_ssl.version import __version__

__all__ = [
    "Alignment", "EmpiricalFisher", "ExactHessian", "GaussianNoise", "Identity", "Influence",
    "InfluenceError", "InfluenceScorer", "Invariance", "LoGra", "Relative", "Scores", "Supervised",
    "__version__", "score",
]  # fmt: skip
