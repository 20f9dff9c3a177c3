"""Groups at the top of a ranking compared with base rates, and their looks with all others'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
from jaxtyping import Float64, Int64

from influence_lab.datasets import Grouped, Images
from influence_lab.measures.agreement import Estimate
from influence_lab.measures.detection import auroc
from influence_ssl.analysis.breakdown import breakdown

TOP = 100
DRAWS = 100_000
QUANTITIES = {
    "brightness": "mean grey value",
    "contrast": "standard deviation of the grey values",
    "symmetry": "correlation of the grey image with its mirror image",
}

Column = Float64[np.ndarray, " n"]


def top_of(n: int) -> int:
    """The number of images in the top: 100 as in the paper, a fifth of sets below 500."""
    return min(TOP, n // 5)


def first(magnitude: Column, k: int) -> Int64[np.ndarray, " k"]:
    """The k highest, ties by index; the k lowest if the sign is reversed."""
    return np.argsort(-magnitude, kind="stable")[:k]


def uneven(top: Int64[np.ndarray, " g"], all_: Int64[np.ndarray, " g"], seed: int = 0) -> float:
    r"""p-value for the groups in the top against those of all images.

    If rank and group are unrelated, the top is a draw without replacement, and the counts are
    multivariate hypergeometric. The statistic is Pearson's
    :math:`\sum_g (t_g - e_g)^2 / e_g` with :math:`e_g = k n_g / n`; p is the share of
    :data:`DRAWS` such draws, the one found included, that reach it.
    """
    k, n = int(top.sum()), int(all_.sum())
    expected = k * all_ / n

    def statistic(counts: np.ndarray) -> np.ndarray:
        return ((counts - expected) ** 2 / expected).sum(-1)

    drawn = np.random.default_rng(seed).multivariate_hypergeometric(all_, k, DRAWS)
    # Equal tables differ by rounding alone.
    reached = statistic(drawn) >= statistic(top) * (1 - 1e-12)
    return float((1 + reached.sum()) / (1 + DRAWS))


def groups(grouped: Grouped, magnitude: Column) -> dict[str, Any]:
    """Shares in the top and base rates, for each attribute (see :func:`breakdown`)."""
    n = len(magnitude)
    order = first(magnitude, n)
    top = top_of(n)
    labels = pandas.DataFrame({name: text[order] for name, text in grouped.attributes.items()})
    table = breakdown(labels, 100 * np.arange(n - 1, -1, -1) / (n - 1), top)
    for column in table["columns"]:
        counts = np.array([[row["in_top"], row["images"]] for row in column["values"]])
        column["p_uneven"] = uneven(counts[:, 0], counts[:, 1])
    return table


def appearance(images: Images) -> dict[str, Column]:
    """The :data:`QUANTITIES` of every image; an image of one grey value has symmetry 1."""
    found: dict[str, Column] = {name: np.empty(len(images)) for name in QUANTITIES}
    for k, picture in enumerate(images.images):
        grey = picture.mean(2, dtype=np.float64) / 255
        rest = grey - grey.mean()
        power = (rest**2).sum()
        found["brightness"][k] = grey.mean()
        found["contrast"][k] = grey.std()
        found["symmetry"][k] = (rest * rest[:, ::-1]).sum() / power if power > 0 else 1.0
    return found


def looks(images: Images, magnitude: Column) -> dict[str, dict[str, Estimate]]:
    """A comparison of the highest and lowest images' :data:`QUANTITIES` with all others'."""
    measured, k = appearance(images), top_of(len(images))
    found = {}
    for which, sign in (("highest", 1), ("lowest", -1)):
        chosen = np.zeros(len(images), bool)
        chosen[first(sign * magnitude, k)] = True
        found[which] = {
            name: auroc(values[chosen], values[~chosen]) for name, values in measured.items()
        }
    return found
