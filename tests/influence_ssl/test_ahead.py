"""Threads read ahead of the encoder: the values, the errors and the reads of a run without them."""

from __future__ import annotations

import copy
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets import images
from PIL import Image
from torch import Tensor, nn

from influence_ssl import (
    EmpiricalFisher,
    ExactHessian,
    GaussianNoise,
    Identity,
    InfluenceError,
    InfluenceScorer,
    Invariance,
    LoGra,
    Supervised,
    _batches,
)
from influence_ssl import ahead as reading
from influence_ssl._examples import Examples
from influence_ssl.ahead import ahead, in_threads
from influence_ssl.files.images import ImageFiles

PATIENCE = 60.0  # seconds until a test gives up on what has to happen


class Watched(torch.utils.data.Dataset):
    """A data set that notes which items are read, how often and in which threads."""

    def __init__(self, x: Tensor, labels: bool = False) -> None:
        self.x, self.labels = x, labels
        self.reads: Counter[int] = Counter()
        self.threads: set[str] = set()
        self.read = [threading.Event() for _ in x]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[object, ...]:
        self.reads[i] += 1
        self.threads.add(threading.current_thread().name)
        if threading.current_thread() is not threading.main_thread():  # where the checks read
            self.read[i].set()
        return (self.x[i], i % 3, f"image {i}") if self.labels else (self.x[i],)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))


def left() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("influence-ssl")]


def score(net, x, **settings):
    return InfluenceScorer(net, progress=False, **settings).score(x, representations=True)


def equal(a, b) -> None:
    for name in ("values", "per_draw", "loss", "gradient_norm", "representations"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@dataclass(frozen=True)
class Alternating(GaussianNoise):
    """Noise of another draw in every second draw, so that what was drawn ahead does not serve."""

    def __call__(self, x, index, draw, seed):
        return 2 * x - super().__call__(x, index, draw // 2, seed)


@pytest.mark.parametrize(
    "settings",
    [
        {"draws": 3},
        {"draws": 3, "objective": Invariance(Alternating())},
        {"curvature": EmpiricalFisher(), "objective": Invariance(distance="squared")},
        {"objective": Supervised()},
        {"curvature": Identity(), "objective": Invariance(lambda x, i, d, s: x + 0.1)},
    ],
)
def test_threads_change_no_bit(settings):
    net, x = small(), images(25).float()
    data = Watched(x, labels=True)
    settings = {"batch_size": 7, **settings}
    expected = score(net, data, workers=0, **settings)
    for workers in (1, 5):
        equal(score(net, data, workers=workers, **settings), expected)
    if not isinstance(settings.get("objective"), Supervised):
        equal(score(net, x, workers=3, **settings), expected)
    assert not left()


def test_threads_change_no_bit_of_a_hessian_or_of_two_passes(monkeypatch):
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3, bias=False)).double()
    data = Watched(images(10, 4))
    settings = {"curvature": ExactHessian(damping=10.0), "batch_size": 3, "draws": 2}
    expected = score(net, data, **settings)
    monkeypatch.setattr("influence_ssl._passes.free_memory", lambda _: 0)  # for any gradients
    equal(score(net, data, workers=3, **settings), expected)


def test_a_store_serves_threads_and_no_threads_alike(tmp_path):
    net, data = small(), Watched(images(30).float())
    settings = {"batch_size": 4, "draws": 2}
    expected = score(net, data, **settings)
    equal(score(net, data, workers=3, store=tmp_path, **settings), expected)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    equal(score(net, data, store=tmp_path, **settings), expected)
    equal(score(net, data, workers=2, store=tmp_path, **settings), expected)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


class Waiting(nn.Module):
    """An encoder that holds each batch until the first image of the next one has been read.

    Pixel 0 of image i is i. ``in_time``: whether it was read; ``most``: by how many images reading
    was ahead.
    """

    def __init__(self, data: Watched, rows: int) -> None:
        super().__init__()
        self.linear, self.data, self.rows = nn.Linear(4, 3), data, rows
        self.in_time: list[bool] = []
        self.most = 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 2 * self.rows:  # not the checks, which take two images
            last = int(x[self.rows - 1, 0])
            if last + 1 < len(self.data):
                self.in_time.append(self.data.read[last + 1].wait(PATIENCE))
            self.most = max(self.most, sum(event.is_set() for event in self.data.read) - last - 1)
        return self.linear(x)


class Still:
    """A perturbation that moves no image much, and notes where it draws."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def __call__(self, x: Tensor, *_: object) -> Tensor:
        return x * 1.001

    def ahead(self, shape, index, draw, seed, pinned):
        self.threads.add(threading.current_thread().name)
        assert shape == (len(index), 4)
        assert not pinned
        return self


def numbered(n: int) -> Tensor:
    x = torch.rand(n, 4, generator=torch.Generator().manual_seed(0))
    x[:, 0] = torch.arange(n)
    return x


@pytest.mark.parametrize("workers", [1, 2])
def test_the_next_batch_is_read_while_one_is_in_the_encoder(workers):
    data = Watched(numbered(80))
    net, noise = Waiting(data, 4), Still()
    score(net, data, objective=Invariance(noise), curvature=LoGra(2), batch_size=4, workers=workers)
    assert len(net.in_time) == 19
    assert all(net.in_time)
    assert net.most <= 4 * (workers + 2)
    assert noise.threads
    assert threading.main_thread().name not in noise.threads
    assert not left()


def test_what_is_read_ahead_stays_within_an_eighth_of_the_memory(monkeypatch):
    data = Watched(numbered(80))
    net = Waiting(data, 4)
    # Images and noise of two batches.
    monkeypatch.setattr(_batches, "free_memory", lambda _: 8 * 2 * (2 * 4 * 16))
    score(net, data, curvature=LoGra(2), batch_size=4, workers=5)
    assert all(net.in_time)
    assert net.most <= 2 * 4


def test_an_item_is_read_once_for_all_draws_where_memory_allows(monkeypatch):
    """Besides, 27 reads for the checks: of one image, of two, and three times of eight."""
    net, x = small(), images(64).float()
    found = {}
    for free, workers in ((1e9, 0), (1e9, 3), (1e3, 0), (1e3, 3)):
        monkeypatch.setattr(_batches, "free_memory", lambda _, free=free: free)
        data = Watched(x)
        found[free, workers] = score(net, data, draws=3, batch_size=7, workers=workers)
        passes = 1 if free == 1e9 else 3
        assert sum(data.reads.values()) == passes * 64 + 27
    for other in found.values():
        equal(other, found[1e9, 0])


def test_a_second_pass_reads_nothing_again(monkeypatch):
    """As where the gradients do not fit into memory, but the images do."""
    monkeypatch.setattr("influence_ssl._passes.free_memory", lambda _: 0)
    data = Watched(images(20).float())
    score(small(), data, batch_size=6)
    assert sum(data.reads.values()) == 20 + 27


class Broken(Watched):
    """Item 21 cannot be read, which it says only after item 37 has said it of itself."""

    def __init__(self, x: Tensor, threaded: bool) -> None:
        super().__init__(x)
        self.failed = threading.Event()
        self.threaded = threaded

    def __getitem__(self, i: int) -> tuple[object, ...]:
        if i == 37:
            self.failed.set()
        if i == 21 and self.threaded:
            assert self.failed.wait(PATIENCE)
        if i in (21, 37):
            raise OSError(f"picture-{i}.png is truncated")
        return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 5])
def test_the_first_unreadable_item_is_the_one_that_is_reported(workers):
    net, data = small(), Broken(images(64).float(), workers > 1)
    with pytest.raises(OSError, match=r"picture-21\.png is truncated") as caught:
        score(net, data, batch_size=8, workers=workers)
    assert caught.value.__notes__ == ["while reading item 21 of images"]
    assert not left()


@pytest.mark.parametrize("workers", [0, 4])
def test_an_image_with_nan_is_named(workers):
    x = images(50).float()
    x[33, 1, 2, 3] = torch.nan
    for data in (x, Watched(x)):
        with pytest.raises(InfluenceError, match="image 33 has NaN"):
            score(small(), data, batch_size=8, workers=workers)
        assert not left()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_large_values_are_not_taken_for_infinite_ones(dtype):
    """Their sum is infinite; beside them stands an image whose infinities cancel."""
    x = torch.full((6, 3, 8, 8), torch.finfo(dtype).max, dtype=dtype)
    assert x.sum(dtype=dtype).isinf()
    Examples(x, None).batch(range(6))
    x[4, 0, 0, :2] = torch.tensor([torch.inf, -torch.inf])
    for data in (x, Watched(x)):
        with pytest.raises(InfluenceError, match="image 4 has NaN or infinite"):
            Examples(data, None).batch(range(6))


def test_after_a_stop_nothing_more_is_begun(monkeypatch):
    """Ctrl-C comes while the third batch is in the encoder and each of three threads reads."""
    stopped = threading.Event()

    class Slow(Watched):
        def __getitem__(self, i: int) -> tuple[object, ...]:
            found = super().__getitem__(i)
            if i >= 12 and threading.current_thread() is not threading.main_thread():
                assert stopped.wait(PATIENCE)
            return found

    class Interrupted(Waiting):
        def forward(self, x: Tensor) -> Tensor:
            found = super().forward(x)
            if len(self.in_time) == 3:
                raise KeyboardInterrupt
            return found

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            stopped.set()
            super().shutdown(wait=wait)

    monkeypatch.setattr(reading, "ThreadPoolExecutor", Pool)
    data = Slow(numbered(400))
    with pytest.raises(KeyboardInterrupt):
        score(Interrupted(data, 4), data, curvature=LoGra(2), batch_size=4, workers=3)
    assert stopped.is_set()
    assert not left()
    # The checks, three batches, and the image that each thread was reading.
    assert sum(data.reads.values()) <= 27 + 12 + 3


def test_an_iteration_that_is_given_up_leaves_no_thread():
    net, x = small(), images(3000).float()
    gradients = InfluenceScorer(net, batch_size=256, workers=2, progress=False).gradients(x)
    next(gradients)
    assert left()
    gradients.close()
    assert not left()


def test_without_a_word_only_data_sets_that_allow_it_are_read_by_threads(monkeypatch):
    monkeypatch.setattr(reading, "processors", lambda: 3)
    net, here = small(), threading.main_thread().name
    data = Watched(images(20).float())
    score(net, data, batch_size=4)
    assert data.threads == {here}
    data.read_by_threads = True
    data.threads.clear()
    score(net, data, batch_size=4)
    # One reads ahead where images are small; the first ones are looked at beforehand.
    assert len(data.threads - {here}) == 1
    monkeypatch.setattr(reading, "_SMALL", 1)
    # A thread that is done at once would do all of it.
    read = Watched.__getitem__
    monkeypatch.setattr(
        Watched, "__getitem__", lambda self, i: (time.sleep(0.01), read(self, i))[1]
    )
    score(net, data, batch_size=4)
    assert len(data.threads - {here}) > 1


@pytest.mark.parametrize(
    ("kept", "device", "threads"),
    [(True, "cuda", 3), (True, "cpu", 0), (False, "cuda", 1), (False, "cpu", 1)],
)
def test_files_in_memory_are_prepared_as_a_tensor_is(kept, device, threads, tmp_path, monkeypatch):
    """By all processors for a card and by none ahead for this one; small files by one."""
    monkeypatch.setattr(reading, "processors", lambda: 3)
    monkeypatch.setattr(_batches, "processors", lambda: 3)
    for k in range(2):
        Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(tmp_path / f"{k}.png")
    files = ImageFiles(tmp_path).readable()
    capture = SimpleNamespace(device=torch.device(device))
    found = [files if kept else copy.copy(files)]  # a copy keeps none
    if kept:
        found.append(torch.stack([x for (x,) in files]))
    for one in found:
        assert _batches.Batches(Examples(one, None), capture, 2, None, None).threads == threads


@pytest.mark.parametrize("workers", [-1, 1.5, "two"])
def test_a_senseless_number_of_threads_is_refused(workers):
    with pytest.raises(InfluenceError, match=r"workers=.* must be an integer ≥ 0"):
        InfluenceScorer(small(), workers=workers)


def test_results_come_in_order_and_no_more_is_begun_than_asked():
    taken, begun = 0, []

    def double(i: int) -> int:
        begun.append(i)
        assert i < taken + 5
        return 2 * i

    found = ahead(lambda pool, i: pool.submit(double, i), range(40), 3, 5)
    for i, value in enumerate(found):
        assert value == 2 * i
        taken = i + 1
    assert sorted(begun) == list(range(40))
    assert list(in_threads(str, "abc", 0)) == list("abc")
    assert not left()
