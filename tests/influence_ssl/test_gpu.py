"""On a CUDA device: the CPU's scores, no waiting within a pass, and memory that n does not move."""

import numpy as np
import pytest
import torch
from nets import Residual, build, images, score

from influence_ssl import GaussianNoise, InfluenceError, InfluenceScorer, LoGra
from influence_ssl.curvature import CHUNK

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def ranks_agree(a, b):
    order = [np.argsort(np.argsort(s.values)) for s in (a, b)]
    return np.corrcoef(*order)[0, 1]


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cuda_agrees_with_the_cpu(dtype, joint, draws):
    net, x = build(Residual), images(100)
    settings = {"curvature": LoGra(rank=4, joint=joint), "draws": draws}
    expected = score(net, x, **settings)
    found = score(net, x, device="cuda", dtype=dtype, **settings)
    assert next(net.parameters()).device.type == "cpu"
    # On a CPU, too, this small network agrees with itself to no more than 0.95 to 0.98 in bfloat16,
    # as the rounding falls, and to 0.999 with convolutions in TF32, which a card uses.
    least = {torch.float64: 0.9999, torch.float32: 0.995, torch.bfloat16: 0.93}[dtype]
    assert ranks_agree(expected, found) >= least
    if dtype == torch.float64:
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-8)
        if draws > 1:
            np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-6)


# PyTorch warns once and yet sets the mode: where that is an error, the next tests would meet it.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_batch_waits_for_the_device(dtype):
    """CUDA reports every call that waits, as an error, from the images to the gradients."""
    net, x = build(Residual).float(), images(3 * CHUNK).float()
    scorer = InfluenceScorer(net, device="cuda", dtype=dtype, batch_size=64, progress=False)
    gradients = scorer.gradients(x)
    found = [next(gradients)]  # kernels are chosen in the first batches
    try:
        torch.cuda.set_sync_debug_mode("error")
        found.append(next(gradients))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found += gradients
    assert len(found) == 3
    assert torch.cat(found).isfinite().all()


def test_memory_does_not_grow_with_the_number_of_images():
    """In two passes; what does grow is a score and an index, tens of bytes an image.

    The smaller number fills the chunks that the curvature takes. PyTorch's own work space is first
    allocated in a run that does not count.
    """
    net, peaks, (few, many) = build(Residual).float(), [], (2 * CHUNK, 4 * CHUNK)
    for n in (few, few, many):
        x = images(n).float()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        scorer = InfluenceScorer(net, device="cuda", batch_size=64, progress=False)
        scorer.fit(x).score(x)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[2] - peaks[1] < 64 * (many - few) + 2**20


def test_an_image_without_a_representation_is_named_at_the_end_of_the_pass():
    net, x = build(Residual).float(), images(12).float()
    net.stem.weight.data.mul_(100)
    x[7] = 1e38  # finite, and in float32 the first convolution makes it infinite
    with pytest.raises(InfluenceError, match="the gradient of image 7 is not finite"):
        score(net, x, device="cuda", batch_size=4)


def test_noise_is_the_cpu_s():
    x, index = torch.zeros(3, 3, 4, 4), torch.arange(3)
    noise = GaussianNoise()
    assert torch.equal(noise(x.cuda(), index, 1, 2).cpu(), noise(x, index, 1, 2))
