"""The book's figure style: readable, distinguishable, the same file every time."""

from __future__ import annotations

import io
from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from influence_lab import figures


def linear(color: str) -> np.ndarray:
    channels = np.array(to_rgb(color))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(color: str) -> float:
    """Relative luminance as in WCAG 2.1."""
    return float(linear(color) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("name", figures.COLORS)
def test_colours_stand_out_from_white(name: str) -> None:
    # WCAG 2.1, success criterion 1.4.11: graphics need 3:1.
    assert 1.05 / (luminance(figures.COLORS[name]) + 0.05) >= 3


# Machado, Oliveira and Fernandes (2009), severity 1.
DEFICIENCIES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_methods_colours_differ_with_a_colour_vision_deficiency(deficiency: str) -> None:
    matrix = np.array(DEFICIENCIES[deficiency])
    names = ("simclr", "byol", "barlow", "supervised")
    seen = {name: matrix @ linear(figures.COLORS[name]) for name in names}
    for one, other in combinations(names, 2):
        assert np.abs(seen[one] - seen[other]).max() > 0.05, (one, other)


def test_text_stays_readable_on_a_phone() -> None:
    # A figure is scaled to about 350 of a phone's 390 pixels.
    figures.use_style()
    smallest = min(mpl.rcParams[key] for key in ("xtick.labelsize", "legend.fontsize"))
    assert smallest / 72 / figures.WIDTH * 350 >= 10


def test_gallery_shows_every_image_once_and_files_repeat() -> None:
    figures.use_style()
    images = np.random.default_rng(0).random((7, 3, 4, 4))
    files = []
    for _ in range(2):
        figure, axes = figures.gallery(images, labels=[str(i) for i in range(7)], columns=3)
        assert axes.shape == (3, 3)
        assert sum(len(axis.images) for axis in axes.flat) == 7
        assert [axis.get_title() for axis in axes.flat][:8] == [*"0123456", ""]
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        files.append(buffer.getvalue())
        plt.close(figure)
    assert files[0] == files[1]
