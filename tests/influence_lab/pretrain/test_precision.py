"""bfloat16 ranks as float32 does on the recorded encoder: embedded and, where found, real ones."""

import pytest
import torch
from scipy.stats import spearmanr

from influence_lab.datasets import load_cifar10, make_scenes
from influence_lab.pretrain.resnets import normalise
from influence_lab.records import results
from influence_ssl import InfluenceError, InfluenceScorer


def pictures(name):
    if name == "scenes":
        return make_scenes(40, seed=0).images.tensor()
    try:
        return load_cifar10("test").tensor()[::250]
    except InfluenceError as error:  # the repository holds no data set; .ci/run unpacks one
        pytest.skip(f"real CIFAR-10 is not here: {error}")


@pytest.mark.parametrize("name", ["scenes", "cifar10"])
def test_bfloat16_ranks_as_float32(name):
    encoder = results.load_encoder("cpu", "simclr", 0)
    images = normalise(pictures(name))
    full = InfluenceScorer(encoder, progress=False).score(images)
    half = InfluenceScorer(encoder, dtype=torch.bfloat16, progress=False).score(images)
    assert half.provenance["dtype"] == "bfloat16"
    assert spearmanr(full.values, half.values).statistic >= 0.999
