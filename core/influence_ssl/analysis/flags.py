"""Pictures that look faulty in themselves, by thresholds on pixel statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from influence_ssl.files.looks import Looks

FLAGS = ("dark", "bright", "blurry", "low information", "odd aspect", "odd size", "grey")


def flags(looks: Sequence[Looks]) -> list[list[str]]:
    """The :data:`FLAGS` that hold for each image: the issues of cleanvision, with own thresholds.

    - ``dark``: 99 % of the pixels are darker than 0.37; ``bright``: 95 % are lighter than 0.95;
    - ``blurry``: 1 − exp(−edges / 100) is below 0.17, that is, the standard deviation of the edges
      is below 18.6 grey levels; dark pictures are never called blurry;
    - ``low information``: the entropy of the grey values is below 3 bits;
    - ``odd aspect``: the shorter side is less than 0.35 of the longer one;
    - ``odd size``: the root of width times height is more than ten times the median or less than a
      tenth of it;
    - ``grey``: all pixels have three equal channels, and fewer than half of the images in the set
      are like this.

    Everything except size and aspect is measured on the picture shrunk to 64 pixels
    (:class:`~influence_ssl.files.looks.Looks`).
    """
    side = np.sqrt([float(look.width) * look.height for look in looks])
    middle = np.median(side)
    grey = np.array([look.colour == 0 for look in looks])
    dark = np.array([look.lightest < 0.37 for look in looks])
    holds = {
        "dark": dark,
        "bright": np.array([look.darkest > 0.95 for look in looks]),
        "blurry": np.array([1 - np.exp(-look.edges / 100) < 0.17 for look in looks]) & ~dark,
        "low information": np.array([look.entropy < 3 for look in looks]),
        "odd aspect": np.array(
            [min(k.width, k.height) < 0.35 * max(k.width, k.height) for k in looks]
        ),
        "odd size": (side > 10 * middle) | (side < middle / 10),
        "grey": grey & (grey.mean() < 0.5),
    }
    return [[name for name in FLAGS if holds[name][k]] for k in range(len(looks))]
