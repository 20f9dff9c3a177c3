"""Gaussian noise: its distribution, and what it depends on."""

import torch

from influence_ssl import GaussianNoise


def test_noise_is_the_example_s_own():
    x = torch.zeros(6, 3, 5, 5)
    index = torch.tensor([4, 0, 9, 2, 5, 7])
    noise = GaussianNoise(0.05, 0.2)
    whole = noise(x, index, 1, 3)
    for row in range(6):
        assert torch.equal(noise(x[:1], index[row : row + 1], 1, 3)[0], whole[row])
    assert torch.equal(noise(x.double(), index, 1, 3).float(), whole)
    assert torch.equal(noise(x.bfloat16(), index, 1, 3), whole.bfloat16())
    for other in (noise(x, index + 1, 1, 3), noise(x, index, 2, 3), noise(x, index, 1, 4)):
        assert not torch.isclose(other, whole).any()


def test_noise_is_normal_with_its_mean_and_deviation():
    """Moments over 2 million values against those of N(0.05, 0.2): six standard errors."""
    x = torch.zeros(200, 10_000)
    noise = GaussianNoise(0.05, 0.2)(x, torch.arange(200), 0, 0).double()
    standard = (noise - 0.05) / 0.2
    n = standard.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(standard.pow(power).mean() - moment) < 6 * (variance / n) ** 0.5
    between = torch.corrcoef(standard[:, :5000])
    between.fill_diagonal_(0)
    assert between.abs().max() < 6 / 5000**0.5


def test_repr_is_the_constructor():
    assert repr(GaussianNoise(0.01, 0.3)) == "GaussianNoise(mean=0.01, std=0.3)"
