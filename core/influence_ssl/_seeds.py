"""The seeds of many examples at once.

NumPy's ``SeedSequence`` hashes one tuple of numbers per call, which takes as long as drawing an
image's noise, and no other thread can run meanwhile. Here the same hash runs on a whole batch. Its
results are the same bit for bit; NumPy guarantees that they never change (NEP 19). Source of the
algorithm: M. E. O'Neill (2015), Developing a seed_seq alternative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_POOL = 4
_WORD = 2**32
_Words = NDArray[np.uint32]  # (n,)


def example_seed(*numbers: int) -> int:
    """A 64-bit hash of all these numbers, from NumPy's ``SeedSequence``."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def example_seeds(seed: int, index: Sequence[int], *numbers: int) -> list[int]:
    """``example_seed(seed, i, *numbers)`` for each i of ``index``."""
    if not index or max(index) >= _WORD:  # an index of two words
        return [example_seed(seed, i, *numbers) for i in index]
    rows = np.array(index, np.uint32)
    after = [word for number in numbers for word in _words(number)]
    entropy = [np.broadcast_to(np.uint32(word), rows.shape) for word in (*_words(seed), *after)]
    entropy.insert(len(_words(seed)), rows)
    pool = _mixed(entropy)
    hashed = _Hash(0x8B51F9DD, 0x58F38DED)
    low, high = (hashed(pool[k]).astype(np.uint64) for k in range(2))
    found: list[int] = (low | high << np.uint64(32)).tolist()
    return found


def _words(number: int) -> list[int]:
    """The 32-bit words of a number ≥ 0, the lowest first."""
    words = [number % _WORD]
    while number := number // _WORD:
        words.append(number % _WORD)
    return words


class _Hash:
    """A hash of words whose constant changes with each call."""

    def __init__(self, constant: int, factor: int) -> None:
        self.constant, self.factor = constant, factor

    def __call__(self, words: _Words) -> _Words:
        words = words ^ np.uint32(self.constant)
        self.constant = self.constant * self.factor % _WORD
        words *= np.uint32(self.constant)
        return words ^ words >> np.uint32(16)


def _mixed(entropy: list[_Words]) -> list[_Words]:
    """The pool, into which every word of the entropy is mixed."""
    hashed = _Hash(0x43B0D7E5, 0x931E8875)
    zero = np.zeros_like(entropy[0])
    pool = [hashed(entropy[k] if k < len(entropy) else zero) for k in range(_POOL)]
    for source in range(_POOL):
        for k in range(_POOL):
            if k != source:
                pool[k] = _mix(pool[k], hashed(pool[source]))
    for words in entropy[_POOL:]:
        for k in range(_POOL):
            pool[k] = _mix(pool[k], hashed(words))
    return pool


def _mix(x: _Words, y: _Words) -> _Words:
    words: _Words = np.uint32(0xCA01F9DD) * x - np.uint32(0x4973F715) * y
    return words ^ words >> np.uint32(16)
