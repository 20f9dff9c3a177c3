"""Memory as it was stated before the run, flat where n grows; and what a run takes on paper."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from influence_lab.benchmark import scale
from influence_lab.cli import main
from influence_lab.pretrain.cost import DEVICES
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_lab.records import results

COMMON = """
import torch
from influence_lab.benchmark import scale
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_ssl import InfluenceScorer, LoGra
torch.set_num_threads(1)
"""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def numbers(code: str) -> list[float]:
    """What a fresh process prints."""
    run = [sys.executable, "-c", COMMON + code]
    # What glibc holds on to differs from run to run unless its threshold is fixed.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(
        run, capture_output=True, text=True, timeout=800, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


@linux
@pytest.mark.parametrize(
    ("case", "setting"),
    [("batch", "rank=4"), ("joint", "rank=11, joint=True"), ("per layer", "rank=32")],
)
def test_peak_memory_is_what_was_stated_before(case, setting):
    """A large batch of a slim network; then one where the curvature is what counts."""
    n, batch, width, side = (192, 192, 8, 32) if case == "batch" else (64, 16, 16, 8)
    draws = {"batch": 1, "joint": 40, "per layer": 17}[case]
    stated, found = numbers(f"""
scorer = InfluenceScorer(cifar_resnet18({width}), curvature=LoGra({setting}),
                         batch_size={batch}, draws={draws}, progress=False)
images = torch.randn({n}, 3, {side}, {side})
scorer.score(images[:2]) if {case == "batch"} else None
print(scale.memory(scorer, images[:4], {n}, keep=True).peak)
print(scale.peak(lambda: scorer.score(images)))
""")
    assert found > 100e6
    assert found == pytest.approx(stated, rel=0.2)


@linux
def test_memory_is_flat_in_the_number_of_images():
    """Four times as many streamed images take no more than their scores and indices do."""
    small, large = numbers("""
scale.stream(2_000)
print(*(scale.peak(lambda: scale.stream(n)) for n in (8_000, 32_000)))
""")
    assert large - small < 2 * scale.PER_IMAGE * 24_000 + 8e6
    assert 4 * sum(x.numel() for x in scale.tiny_encoder().parameters()) * 24_000 > 8e6


@linux
def test_the_recorded_stream_is_made_again(tmp_path):
    assert main(["reproduce", "stream", "--profile", "tiny", "--results", str(tmp_path)]) == 0
    made, tracked = (results.load_record("tiny", "stream", root) for root in (tmp_path, None))
    assert made["provenance"]["data_sha256"] == tracked["provenance"]["data_sha256"]
    for one, other in zip(made["runs"], tracked["runs"], strict=True):
        assert one["images"] == other["images"]
        assert 0 < one["bytes"] < 40e6 > other["bytes"]
        assert one["seconds"] > 0 < other["seconds"]


def test_streamed_images_do_not_depend_on_the_batch():
    images = scale.Stream(3000)
    assert torch.equal(images.__getitems__([5, 2999])[1], images[2999])
    assert len(torch.stack([*images.__getitems__(list(range(256)))]).unique(dim=0)) == 256


def test_an_estimate_on_paper_counts_what_the_layers_say():
    with torch.device("meta"):
        net, image = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), torch.zeros(3, 16, 16)
    found = scale.on_paper(net, image, 1000, DEVICES["cuda"], rank=16, ratio=0.5, draws=2)
    flops = 2 * 27 * 8 * 256
    assert found["seconds"] == pytest.approx(0.5 * 6 * flops * 2000 / DEVICES["cuda"].flops)
    assert found["gradients"] == 4 * 64 * 2000
    assert found["curvature"] == 40 * 64**2


def test_the_forward_pass_of_the_full_encoder():
    """0.56 billion multiplications, as the network's publications have it for 32 x 32 pixels."""
    flops = scale.forward_flops(cifar_resnet18(64).eval(), torch.zeros(3, 32, 32))
    assert flops / 2 == pytest.approx(0.556e9, rel=0.01)
