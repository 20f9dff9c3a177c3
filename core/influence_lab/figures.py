"""One style for every figure of the book.

A figure is 5.2 inches wide with 12-point text. On a phone of 390 pixels, where it is scaled to
about 350, the smallest text is still 10 pixels high. Text, lines and axes are vectors; draw
large clouds of points with ``rasterized=True`` so that the file stays small. The background is
opaque white, because a chart whose ink must work on black and on white has no dark ink left; the
site frames it in the dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler

from influence_ssl.files.writing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.2
"""Width of a figure in inches."""

COLORS: dict[str, str] = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#00875F",
    "purple": "#AA4499",
    "grey": "#5F6B7A",
    "sky": "#3A9BD9",
    "black": "#1A1A1A",
    # By role, so that each role has the same colour in every chapter.
    "highest": "#D55E00",
    "lowest": "#0072B2",
    "all": "#5F6B7A",
    "simclr": "#0072B2",
    "byol": "#D55E00",
    "barlow": "#00875F",
    "supervised": "#AA4499",
}
"""Colours by name and by role; distinguishable with the common colour-vision deficiencies and at
least 3:1 in contrast against white (after Okabe and Ito, with the pale ones darkened)."""

_STYLE: Any = {
    "figure.figsize": (WIDTH, 3.4),
    "figure.dpi": 96,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "font.family": "sans-serif",
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": "#D9DDE2",
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
    "axes.prop_cycle": cycler(
        color=[COLORS[k] for k in ("blue", "vermilion", "green", "purple", "grey", "sky")]
    ),
    # Paths instead of text, and a fixed salt: the same file on every machine.
    "svg.fonttype": "path",
    "svg.hashsalt": "influence-ssl",
}


def use_style() -> None:
    """Apply the book's style to matplotlib; in a notebook, also draw figures as SVG."""
    mpl.rcParams.update(_STYLE)
    try:
        from IPython import get_ipython
    except ImportError:
        return
    if get_ipython() is None:
        return
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("svg", bbox_inches=None, metadata={"Date": None})


def save(figure: Figure, path: Path) -> None:
    """Write the figure whole or not at all, in the format of its suffix (SVG without one)."""
    with replacing(path, parents=True) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "svg")
    plt.close(figure)


def gallery(
    images: Any,
    labels: Sequence[str] | None = None,
    columns: int = 6,
    title: str | None = None,
) -> tuple[Figure, np.ndarray]:
    """Show images in a grid, row by row, each below its label.

    Args:
        images: (N, 3, H, W) or (N, 1, H, W) in [0, 1], tensor or array; values outside are
            clipped.
        labels: one short text per image, or none.
        columns: images per row; at most 8 stay recognisable on a phone.
        title: a line above the grid.

    Returns:
        The figure and its (rows, columns) array of axes.
    """
    pictures = np.clip(np.asarray(images, dtype=np.float32), 0.0, 1.0).transpose(0, 2, 3, 1)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cell = WIDTH / columns
    height = rows * cell * (1.0 if labels is None else 1.3) + (0.0 if title is None else 0.35)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if place < len(pictures):
            _show(axis, pictures[place], None if labels is None else labels[place])
    if title is not None:
        figure.suptitle(title)
    return figure, axes


def _show(axis: Axes, picture: np.ndarray, label: str | None) -> None:
    grey = picture.shape[-1] == 1
    axis.imshow(picture[..., 0] if grey else picture, cmap="gray" if grey else None, vmin=0, vmax=1)
    if label is not None:
        axis.set_title(label, fontsize=11, pad=3)
