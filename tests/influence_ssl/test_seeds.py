"""The seeds of a batch against NumPy's own, one by one."""

import numpy as np
import pytest

from influence_ssl._seeds import example_seed, example_seeds

INDEX = [0, 1, 2, 41, 65_535, 65_536, 2**31, 2**32 - 1]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**70 + 3])
@pytest.mark.parametrize("numbers", [(0,), (3,), (2**40,), (0, 1), (7, 0, 2**33, 5), ()])
def test_a_batch_has_the_seeds_of_numpy(seed, numbers):
    expected = [
        int(np.random.SeedSequence((seed, i, *numbers)).generate_state(1, np.uint64)[0])
        for i in INDEX
    ]
    assert example_seeds(seed, INDEX, *numbers) == expected
    assert len(set(expected)) == len(INDEX)


def test_random_batches_and_large_indices_too():
    rng = np.random.default_rng(0)
    for _ in range(20):
        seed, draw = (int(n) for n in rng.integers(0, 2**63, 2) >> rng.integers(0, 63, 2))
        index = (rng.integers(0, 2**63, 50) >> rng.integers(0, 63)).tolist()
        expected = [example_seed(seed, i, draw) for i in index]
        assert example_seeds(seed, index, draw) == expected
    assert example_seeds(0, [], 0) == []
