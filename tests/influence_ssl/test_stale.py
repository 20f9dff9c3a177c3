"""What was fitted or stored is never used for anything else: each change is refused by name."""

import copy
import functools
import itertools
import shutil
import threading
from collections import deque
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from nets import Residual, Sequence, build, images, score
from torch import nn
from torch.utils.data import TensorDataset

from influence_ssl import (
    EmpiricalFisher,
    ExactHessian,
    GaussianNoise,
    Identity,
    InfluenceScorer,
    Invariance,
    LoGra,
    Supervised,
    _store,
)
from influence_ssl._store import differing, fingerprint
from influence_ssl.errors import InfluenceValueError


def scorer_of(net, store=None, **settings):
    return InfluenceScorer(net, store=store, progress=False, batch_size=4, **settings)


class Scaled:
    """An encoder's setting that no weight shows."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x, index, draw, seed):
        return x + self.factor * x.square()


TABLE = {0: 0.1, 1: 0.2}
PEAKS = {}
LIGHT = {"most": 9.0}


@dataclass(frozen=True)
class ByTable:
    """A perturbation whose strength in each draw is no attribute of the object."""

    strengths: ClassVar = (0.1, 0.2)

    def __call__(self, x, index, draw, seed):
        return x + self.strengths[draw] * x.square()


def by_table(x, index, draw, seed):
    return x + TABLE[draw] * x.square()


def by_bytes(x, index, draw, seed, view=memoryview(bytearray([1, 2]))):  # noqa: B008
    """Strengths in bytes that show nothing of themselves."""
    return x + view[draw] / 10 * x.square()


def by_peak(x, index, draw, seed):
    """A perturbation that keeps what it has computed."""
    for i, image in zip(index.tolist(), x, strict=True):
        if (i, draw) not in PEAKS:
            PEAKS[i, draw] = float(image.abs().max())
    strength = torch.tensor([PEAKS[i, draw] for i in index.tolist()]).to(x)
    return x + 0.1 * strength.view(-1, 1, 1, 1) * x.square()


class Clamped(nn.Module):
    """An encoder whose attribute touches only bright images."""

    ceiling = None

    def __init__(self, most):
        super().__init__()
        self.inner, self.most = build(Sequence), most
        self.cap, self.last = nn.Hardtanh(-9.0, 9.0), nn.Threshold(-9.0, 0.0)

    def forward(self, x):
        x = self.shade(self.darker(x)).clamp(max=self.bright)
        return self.inner(self.last(self.cap(x)).clamp(max=LIGHT["most"]))

    @property
    def bright(self):
        return 9.0

    @staticmethod
    def shade(x):
        return x.clamp(max=9.0)

    def darker(self, x):
        return x.clamp(max=self.most if self.ceiling is None else self.ceiling[0])


class Recording(nn.Module):
    """An encoder that counts its passes and keeps activations, sizes and a table."""

    def __init__(self):
        super().__init__()
        self.inner, self.passes, self.size, self.seen, self.table = (
            build(Residual),
            0,
            None,
            {},
            None,
        )
        self.inner.down.register_forward_hook(self.keep)

    def keep(self, module, args, output):
        self.seen["down"] = module.last = output.detach()

    def forward(self, x):
        self.passes += 1
        self.size = x.shape
        if self.table is None:
            self.table = torch.arange(3)
        return self.inner(x + 0.1 * self.table.to(x).view(-1, 1, 1))


class Buffered(nn.Module):
    """An encoder that keeps a count, its last images and a table in buffers."""

    def __init__(self):
        super().__init__()
        self.inner = build(Sequence)
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("last", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.passes += 1
        self.last.copy_(x.detach().mean())
        if "table" not in self._buffers:
            self.register_buffer("table", torch.ones(3, 1, 1).to(x))
        return self.inner(x * self.table)


def closure(factor):
    return lambda x, index, draw, seed: x * (1 + factor)


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(54, 5)
    ).double()  # fmt: skip


def other_weights(net):
    net = build(type(net))
    with torch.no_grad():
        next(net.parameters()).mul_(1.01)
    return net


CHANGES = {
    "seed": {"seed": 1},
    "noise": {"objective": Invariance(GaussianNoise(0.05, 0.3))},
    "distance": {"objective": Invariance(distance="squared")},
    "distance of one's own": {"objective": Invariance(distance=lambda z, w: (z - w).abs().sum(1))},
    "closure": {"objective": Invariance(closure(0.1))},
    "object": {"objective": Invariance(Scaled(0.1))},
    "rank": {"curvature": LoGra(2)},
    "projections": {"curvature": LoGra(3, seed=1)},
    "full space": {"curvature": EmpiricalFisher()},
    "layers": {"layers": ["0"]},
    "dtype": {"dtype": torch.float32},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_store_serves_one_set_of_settings(tmp_path, change):
    net, x = plain(), images(12)
    base = {"curvature": LoGra(3)}
    scorer_of(net, tmp_path, **base).score(x)
    with pytest.raises(InfluenceValueError, match=r"holds gradients from a run that differed in"):
        scorer_of(net, tmp_path, **(base | change)).score(x)


def test_a_store_serves_one_encoder(tmp_path):
    net, x = build(Residual), images(12)
    scorer_of(net, tmp_path).score(x)
    with pytest.raises(InfluenceValueError, match="differed in the encoder or its weights"):
        scorer_of(other_weights(net), tmp_path).score(x)
    net.register_buffer("scale", torch.ones(1), persistent=False)
    with pytest.raises(InfluenceValueError, match="differed in the encoder or its weights"):
        scorer_of(net, tmp_path).score(x)


@pytest.mark.parametrize("make", [closure, Scaled, lambda f: functools.partial(noise, factor=f)])
def test_a_changed_closure_or_object_is_refused(tmp_path, make):
    """Same type, same repr up to an address; other values."""
    net, x = build(Sequence), images(12)
    scorer_of(net, tmp_path, objective=Invariance(make(0.1))).score(x)
    expected = scorer_of(net, objective=Invariance(make(0.1))).score(x).values
    again = scorer_of(net, tmp_path, objective=Invariance(make(0.1))).score(x).values
    np.testing.assert_allclose(again, expected, rtol=1e-12)
    with pytest.raises(InfluenceValueError, match=r"differed in (the )?objective"):
        scorer_of(net, tmp_path, objective=Invariance(make(0.11))).score(x)


class Seldom:
    """A perturbation whose strength touches only images of higher index."""

    def __init__(self, strength):
        self.strength = strength

    def __call__(self, x, index, draw, seed):
        far = (index > 1).to(x).view(-1, *[1] * (x.ndim - 1))
        return 0.9 * x + self.strength * far * x.square()


def test_a_change_that_spares_the_first_two_images_is_refused(tmp_path):
    net, x, perturbation = plain(), images(12), Seldom(0.1)
    objective = Invariance(perturbation)
    fitted = scorer_of(net, tmp_path, objective=objective).fit(x)
    perturbation.strength = 0.2
    name = "objective's test_stale.Seldom.strength"
    with pytest.raises(InfluenceValueError, match=f"{name} changed since fit"):
        fitted.score(x)
    with pytest.raises(InfluenceValueError, match=f"differed in the {name}"):
        scorer_of(net, tmp_path, objective=objective).score(x)


def test_a_store_knows_the_images_dtype(tmp_path):
    """The noise is added in it."""
    net, x = plain().float(), images(12).to(torch.bfloat16)
    coarse = scorer_of(net, tmp_path).score(x).values
    found = scorer_of(net, tmp_path).score(x.float()).values
    np.testing.assert_array_equal(found, scorer_of(net).score(x.float()).values)
    assert not np.array_equal(found, coarse)


def noise(x, index, draw, seed, factor):
    return x + factor * x.square()


@pytest.mark.parametrize("change", [0.1, 1e-5])
def test_a_changed_forward_pass_shows_in_the_probe(tmp_path, change):
    net, x = build(Sequence), images(12)
    fitted = scorer_of(net, tmp_path).fit(x)
    net.register_forward_pre_hook(lambda module, args: (args[0].abs() ** change * args[0],))
    with pytest.raises(InfluenceValueError, match="forward pass"):
        scorer_of(net, tmp_path).score(x)
    with pytest.raises(InfluenceValueError, match="forward pass changed since fit"):
        fitted.score(x)


def test_the_probe_knows_each_draw(tmp_path):
    net, x = build(Sequence), images(12)
    view = memoryview(bytearray([1, 2]))
    objective = Invariance(functools.partial(by_bytes, view=view))
    fitted = scorer_of(net, tmp_path, objective=objective, draws=2).fit(x)
    view[1] = 9
    with pytest.raises(InfluenceValueError, match="forward pass changed since fit"):
        fitted.score(x)
    with pytest.raises(InfluenceValueError, match="differed in objective, perturbation"):
        scorer_of(net, tmp_path, objective=objective, draws=2).score(x)


@pytest.mark.parametrize("kind", ["class", "module"])
def test_a_change_of_the_data_that_a_perturbation_names_is_refused(tmp_path, monkeypatch, kind):
    net, x = build(Sequence), images(12)
    settings = {"objective": Invariance(ByTable() if kind == "class" else by_table), "draws": 2}
    fitted = scorer_of(net, tmp_path, **settings).fit(x)
    before = fitted.score(x).values
    if kind == "class":
        monkeypatch.setattr(ByTable, "strengths", (0.1, 0.9))
    else:
        monkeypatch.setitem(TABLE, 1, 0.9)
    assert not np.allclose(scorer_of(net, **settings).score(x).values, before)
    name = "ByTable.strengths" if kind == "class" else "TABLE"
    with pytest.raises(InfluenceValueError, match=rf"objective's test_stale.{name} changed since"):
        fitted.score(x)
    with pytest.raises(
        InfluenceValueError, match=rf"differed in the objective's test_stale.{name}"
    ):
        scorer_of(net, tmp_path, **settings).score(x)
    monkeypatch.undo()
    np.testing.assert_array_equal(scorer_of(net, tmp_path, **settings).score(x).values, before)


@pytest.mark.parametrize(
    "part",
    [
        "attribute", "attribute of the class", "method", "variable", "number of a library's module",
        "kind of a library's module", "property", "static method",
    ],
)  # fmt: skip
def test_a_changed_encoder_that_spares_the_first_two_images_is_refused(tmp_path, monkeypatch, part):
    net, x = Clamped(1.4), 0.3 * images(12).clamp(0, 1)
    x[5:] *= 5
    settings = {"objective": Invariance(GaussianNoise(0, 0.05))}
    fitted = scorer_of(net, tmp_path / "store", **settings).fit(x)
    before = fitted.score(x).values
    fitted.save(tmp_path / "fit")
    if part == "attribute":
        monkeypatch.setattr(net, "most", 1.0)
    elif part == "method":
        monkeypatch.setattr(Clamped, "darker", lambda self, x: x.clamp(max=1.0))
    elif part == "property":
        monkeypatch.setattr(Clamped, "bright", property(lambda self: 1.0))
    elif part == "static method":
        monkeypatch.setattr(Clamped, "shade", staticmethod(lambda x: x.clamp(max=1.0)))
    elif part == "variable":
        monkeypatch.setitem(LIGHT, "most", 1.0)
    elif part == "number of a library's module":
        monkeypatch.setattr(net.cap, "max_val", 1.0)
    elif part == "kind of a library's module":
        monkeypatch.setattr(net, "last", nn.Hardtanh(-9.0, 1.0))
    else:
        monkeypatch.setattr(Clamped, "ceiling", (1.0,))
    assert not np.allclose(scorer_of(net, **settings).score(x).values, before)
    with pytest.raises(InfluenceValueError, match=r"encoder.* changed since fit"):
        fitted.score(x)
    with pytest.raises(InfluenceValueError, match="differed in the encoder"):
        scorer_of(net, tmp_path / "store", **settings).score(x)
    with pytest.raises(InfluenceValueError, match="encoder"):
        InfluenceScorer.load(tmp_path / "fit", net, progress=False).score(x)
    monkeypatch.undo()
    loaded = InfluenceScorer.load(tmp_path / "fit", Clamped(1.4), progress=False)
    np.testing.assert_allclose(loaded.score(x).values, before, rtol=1e-9)


@pytest.mark.parametrize("reader", ["hook before", "hook after", "function"])
def test_an_attribute_that_a_hook_or_a_function_reads_is_the_encoder_s(reader):
    """It spares the first two images."""
    net, x = Clamped(9.0), 0.3 * images(12).clamp(0, 1)
    x[5:] *= 5
    net.limit = 1.4
    if reader == "hook before":
        net.register_forward_pre_hook(lambda module, args: (args[0].clamp(max=module.limit),))
    elif reader == "hook after":
        net.cap.register_forward_hook(lambda module, args, output: output.clamp(max=net.limit))
    else:
        net.darker = lambda x: x.clamp(max=net.limit)
    fitted = scorer_of(net, objective=Invariance(GaussianNoise(0, 0.05))).fit(x)
    net.limit = 1.0
    with pytest.raises(InfluenceValueError, match=r"attribute 'limit' .* changed since fit"):
        fitted.score(x)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_what_running_changes_is_no_change(tmp_path, dtype):
    """Counters, activations and caches may have any value, also at the second look."""
    net, x, y, other = Recording(), images(12), images(20)[12:], images(28, size=12)[20:]
    own, others = range(12, 20), range(20, 28)
    settings = {"objective": Invariance(by_peak), "draws": 2, "dtype": dtype}
    expected = scorer_of(Recording(), **settings).fit(x).score(y, own).values
    scorer_of(net, tmp_path / "store", **settings).score(x)
    net.eval()(x[:2])
    fitted = scorer_of(net, tmp_path / "store", **settings).fit(x)
    fitted.save(tmp_path / "fit")
    loaded = InfluenceScorer.load(
        tmp_path / "fit", Recording(), settings["objective"], progress=False
    )
    for scorer in (fitted, loaded, fitted, loaded):
        scorer.score(other, others)
        for _ in range(2):
            np.testing.assert_allclose(scorer.score(y, own).values, expected, rtol=1e-5)
    scorer_of(net, tmp_path / "store", **settings).score(y, own)


class Counting:
    """A perturbation that counts its calls and keeps strengths, lately seen images and a lock."""

    def __init__(self):
        self.calls, self.known, self.lately = 0, {}, deque(maxlen=3)
        self.lock, self.numbers = threading.Lock(), itertools.count()

    def __call__(self, x, index, draw, seed):
        with self.lock:
            self.calls, self.last = self.calls + 1, next(self.numbers)
            self.lately.append(x.mean())
            known = [self.known.setdefault(i, 0.1 + i / 100) for i in index.tolist()]
        return x + torch.tensor(known, dtype=x.dtype).view(-1, 1, 1, 1) * x.square()


def keeping():
    """Like :class:`Counting`, in a closure and a default value."""
    calls = 0

    def p(x, index, draw, seed, known={}):  # noqa: B006
        nonlocal calls
        calls += 1
        strengths = [known.setdefault(i, 0.1 + i / 100) for i in index.tolist()]
        return x + torch.tensor(strengths, dtype=x.dtype).view(-1, 1, 1, 1) * x.square()

    return p


def uncounted(x, index, draw, seed):
    return x + (0.1 + index.to(x) / 100).view(-1, 1, 1, 1) * x.square()


@pytest.mark.parametrize("make", [Counting, keeping])
def test_what_running_changes_in_a_perturbation_is_no_change(tmp_path, make):
    net, x, y = build(Sequence), images(12), images(20)[12:]
    own = range(12, 20)
    objective = Invariance(uncounted)
    expected = scorer_of(net, objective=objective).fit(x).score(y, own).values
    objective = Invariance(make())
    fitted = scorer_of(net, tmp_path / "store", objective=objective).fit(x)
    fitted.save(tmp_path / "fit")
    load = functools.partial(InfluenceScorer.load, tmp_path / "fit", net, progress=False)
    again = scorer_of(net, tmp_path / "store", objective=objective).fit(x)
    for scorer in (fitted, again, load(objective), load(Invariance(make())), fitted):
        np.testing.assert_allclose(scorer.score(y, own).values, expected, rtol=1e-9)


def test_what_a_stopped_run_changes_is_no_change(tmp_path):
    """Also if the checks, which see two images, do not change it."""

    class Largest(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.largest = build(Sequence), 4

        def forward(self, x):
            self.largest = max(self.largest, len(x))
            return self.inner(x)

    class Stopping(torch.utils.data.Dataset):
        reads = 0

        def __len__(self):
            return 12

        def __getitem__(self, i):
            self.reads += 1
            if self.reads > 30 and i == 10:  # not in the checks
                raise KeyboardInterrupt
            return x[i]

    net, x, data = Largest(), images(12), Stopping()
    scorer = scorer_of(net, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        scorer.score(data)
    data.reads = -1000
    expected = scorer_of(build(Sequence)).score(x).values
    np.testing.assert_allclose(scorer.score(data).values, expected, rtol=1e-9)


def test_an_objective_may_hold_the_encoder(tmp_path):
    """Whose mode is another during a call; its weights count all the same."""

    class Away:
        def __init__(self, net):
            self.net = net

        def __call__(self, x, index, draw, seed):
            return x + 0.1 * self.net(x.double()).detach().mean(1).view(-1, 1, 1, 1).to(x)

    net, x = build(Sequence).train(), images(12)
    fitted = scorer_of(net, tmp_path, objective=Invariance(Away(net))).fit(x)
    expected = scorer_of(net, objective=Invariance(Away(net))).score(x).values
    np.testing.assert_allclose(fitted.score(x).values, expected, rtol=1e-9)
    with torch.no_grad():
        net.out.weight[0, 0] += 1
    with pytest.raises(InfluenceValueError, match="encoder or its weights"):
        fitted.score(x)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_what_running_writes_into_buffers_is_no_change(tmp_path, dtype):
    x, y = images(12), images(20)[12:]
    expected = scorer_of(build(Sequence), dtype=dtype).fit(x).score(y).values
    fitted = scorer_of(Buffered(), tmp_path / "store", dtype=dtype).fit(x)
    fitted.save(tmp_path / "fit")
    loaded = InfluenceScorer.load(tmp_path / "fit", Buffered(), progress=False)
    for scorer in (fitted, loaded, scorer_of(Buffered(), tmp_path / "store", dtype=dtype).fit(x)):
        np.testing.assert_allclose(scorer.score(y).values, expected, rtol=1e-5)
    other = Buffered()
    other.passes += 1
    with pytest.raises(InfluenceValueError, match="different modules or weights"):
        InfluenceScorer.load(tmp_path / "fit", other, progress=False)


def test_an_encoder_as_trained_elsewhere_is_the_same(tmp_path):
    """Places and what only training reads may differ."""

    class Trained(nn.Module):
        def __init__(self, epoch, place, file):
            super().__init__()
            self.inner, self.epoch, self.place = build(Sequence), epoch, place
            self.last = nn.Identity()
            self.last.origin = f"epoch {epoch}"  # a library's module tells of itself
            self.options, self.most = {"weights": file, "device": torch.device("cpu")}, 3.0

        def forward(self, x):
            assert self.options["weights"]
            return self.last(self.inner(x.to(self.options["device"]).clamp(max=self.most)))

    x = images(12)
    fitted = scorer_of(Trained(3, "cuda:1", "/data/a.pt")).fit(x)
    fitted.save(tmp_path)
    loaded = InfluenceScorer.load(tmp_path, Trained(0, "cpu", "/tmp/b.pt"), progress=False)
    np.testing.assert_allclose(loaded.score(x).values, fitted.score(x).values, rtol=1e-9)


def named(**buffers):
    net = nn.Module()
    for name, value in buffers.items():
        net.register_buffer(name, value)
    return net


ZEROS = torch.zeros(6)
ENCODERS = {
    "value": (named(a=ZEROS), named(a=ZEROS + 1e-7)),
    "name": (named(a=ZEROS), named(b=ZEROS)),
    "shape": (named(a=ZEROS.view(2, 3)), named(a=ZEROS.view(3, 2))),
    "dtype": (named(a=ZEROS), named(a=ZEROS.int())),
    "order": (named(a=ZEROS, b=ZEROS + 1), named(a=ZEROS + 1, b=ZEROS)),
    "kind": (nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU6())),
    "place": (nn.Sequential(nn.ReLU(), nn.GELU()), nn.Sequential(nn.GELU(), nn.ReLU())),
}


@pytest.mark.parametrize("pair", ENCODERS.values(), ids=ENCODERS)
def test_a_fingerprint_tells_encoders_apart(pair):
    one, other = map(fingerprint, pair)
    assert one == fingerprint(copy.deepcopy(pair[0])) != other


def test_of_two_runs_a_variable_that_one_does_not_name_is_no_difference():
    """It is one that running changes; each setting must be named by both."""
    now = {"seed": "0", "the encoder's attribute 'passes' (Net)": "3"}
    assert differing(now, {"seed": "0"}) == differing({"seed": "0"}, now) == []
    assert differing(now, {"seed": "1"}) == differing(now, {}) == ["seed"]


def test_a_store_serves_another_damping_and_other_images(tmp_path):
    """Gradients know no damping."""
    net, x, y = build(Sequence), images(12), images(24)[12:]
    scorer_of(net, tmp_path, curvature=LoGra(3)).fit(x).score(y)
    kept = scorer_of(net, tmp_path, curvature=LoGra(3, damping=0.5)).fit(x).score(y).values
    fresh = scorer_of(net, curvature=LoGra(3, damping=0.5)).fit(x).score(y).values
    np.testing.assert_allclose(kept, fresh, rtol=1e-12)


@pytest.mark.parametrize("objective", [Invariance(GaussianNoise()), Supervised()])
def test_a_stored_batch_serves_its_own_images_labels_numbers_and_draws(tmp_path, objective):
    """Each run finds the batches of all earlier ones in the store, and its scores are its own."""
    net, x, labels = build(Sequence), images(8), torch.arange(8) % 3
    runs = {
        "first": ((x, labels), 1, None),
        "two draws": ((x, labels), 2, None),
        "other images": ((x.flip(0), labels), 1, None),
        "other labels": ((x, labels.flip(0)), 1, None),
        "one image of the second batch differs": (
            (x * (1 + (torch.arange(8) == 6))[:, None, None, None], labels),
            1,
            None,
        ),
        "other numbers": ((x, labels), 1, range(3, 11)),
        "numbers in another order": ((x, labels), 1, range(7, -1, -1)),
    }
    for what, (data, draws, index) in runs.items():
        kept, fresh = (
            scorer_of(net, store, objective=objective, curvature=Identity(), draws=draws)
            .score(
                TensorDataset(*data) if isinstance(objective, Supervised) else data[0], index=index
            )
            .values
            for store in (tmp_path, None)
        )
        np.testing.assert_allclose(kept, fresh, rtol=1e-12, err_msg=what)


def test_items_of_twelve_parts_keep_their_order(tmp_path):
    """In a store and in a saved fit, whose parts have numbers of one and two digits."""
    net, x = build(Sequence), images(12)
    items = [(image, *(float(i + 10 * k) for k in range(1, 12))) for i, image in enumerate(x)]

    def weighted(encode, batch, index, draw, seed):
        return encode(batch[0]).square().sum(1) * batch[2] + batch[11]

    fitted = scorer_of(net, tmp_path / "store", objective=weighted).fit(items)
    expected = fitted.score(items).values
    again = scorer_of(net, tmp_path / "store", objective=weighted).fit(items)
    again.save(tmp_path / "fit")
    loaded = InfluenceScorer.load(tmp_path / "fit", net, weighted, progress=False)
    for scorer in (again, loaded):
        np.testing.assert_allclose(scorer.score(items).values, expected, rtol=1e-9)


def test_arrays_of_unknown_origin_and_a_damaged_probe_are_refused(tmp_path):
    net, x = build(Sequence), images(12)
    scorer_of(net, tmp_path).score(x)
    probe = tmp_path / "probe.safetensors"
    content = probe.read_bytes()
    probe.write_bytes(content[:100])
    with pytest.raises(OSError, match=r"probe\.safetensors' is damaged"):
        scorer_of(net, tmp_path).score(x)
    probe.unlink()
    with pytest.raises(InfluenceValueError, match="the origin of their"):
        scorer_of(net, tmp_path).score(x)


def test_no_damage_to_a_stored_batch_goes_unnoticed(tmp_path):
    """A flipped bit, or another type or shape in the header: the batch is missing or the same."""
    columns = {"gradients": torch.arange(6.0).view(2, 3), "loss": torch.ones(2)}
    path = tmp_path / "batch.safetensors"
    store = SimpleNamespace(folder=tmp_path)
    _store.Store.keep(store, path.name, columns)
    content = path.read_bytes()
    damaged = [
        content[:k] + bytes([content[k] ^ 1 << k % 8]) + content[k + 1 :]
        for k in range(len(content))
    ]
    damaged += [content.replace(b"F32", b"I32"), content.replace(b"[2,3]", b"[3,2]")]
    for other in damaged:
        path.write_bytes(other)
        found = _store.Store.find(store, path.name, {"gradients"})
        if found is not None:
            assert found.keys() == columns.keys()
            for name, column in columns.items():
                assert found[name].dtype == column.dtype
                assert torch.equal(found[name], column)
    path.write_bytes(content)
    assert _store.Store.find(store, path.name, {"gradients"}) is not None
    assert _store.Store.find(store, path.name, {"gradients", "representations"}) is None


def test_a_store_that_another_process_begins_at_the_same_moment_is_shared(tmp_path, monkeypatch):
    """The other one writes its probe and arrays just after this one has seen no probe."""
    net, x = build(Sequence), images(12)
    other = scorer_of(net, tmp_path / "other").score(x).values
    exists, ours = Path.exists, tmp_path / "ours"

    def late(path, **how):
        found = exists(path, **how)
        if path == ours / "probe.safetensors" and not ours.is_dir():
            shutil.copytree(tmp_path / "other", ours)
        return found

    monkeypatch.setattr(Path, "exists", late)
    np.testing.assert_allclose(scorer_of(net, ours).score(x).values, other, rtol=1e-12)
    assert ours.is_dir()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("curvature", LoGra(2)),
        ("curvature", LoGra(3, damping=1.0)),
        ("objective", Invariance(distance="squared")),
        ("seed", 1),
        ("draws", 2),
        ("dtype", torch.float32),
        ("layers", ["0"]),
    ],
)
def test_a_setting_that_changed_since_fit_is_refused(name, value):
    net, x = plain(), images(12)
    scorer = scorer_of(net, curvature=LoGra(3)).fit(x)
    setattr(scorer, name, value)
    with pytest.raises(InfluenceValueError, match=f"^{name} changed since fit"):
        scorer.score(x)
    expected = scorer_of(net, **{"curvature": LoGra(3), name: value}).fit(x).score(x).values
    np.testing.assert_array_equal(scorer.fit(x).score(x).values, expected)


def test_a_setting_that_changes_in_place_is_refused():
    net, x, perturbation = plain(), images(12), Scaled(0.1)
    scorer = scorer_of(net, objective=Invariance(perturbation)).fit(x)
    perturbation.factor = 0.2
    with pytest.raises(InfluenceValueError, match="objective"):
        scorer.score(x)
    scorer = scorer_of(net, layers=(names := ["0"])).fit(x)
    names.append("3")  # of which the scorer has a list of its own
    scorer.score(x)
    scorer.layers.append("3")
    with pytest.raises(InfluenceValueError, match="layers changed since fit"):
        scorer.score(x)


def test_an_encoder_that_changed_since_fit_is_refused():
    net, x = build(Residual), images(12)
    scorer = scorer_of(net).fit(x)
    before = scorer.score(x).values
    weight = next(net.parameters())
    with torch.no_grad():
        weight.mul_(1.001)
    with pytest.raises(InfluenceValueError, match="the encoder or its weights changed since fit"):
        scorer.score(x)
    with torch.no_grad():
        weight.copy_(next(build(Residual).parameters()))
    np.testing.assert_allclose(scorer.score(x).values, before, rtol=1e-12)


def test_a_curvature_s_own_random_projections_are_kept_with_the_fit():
    """Projections that differ at each call would otherwise meet a curvature of other ones."""

    class Unseeded(LoGra):
        def project(self, layers):
            for layer in layers:
                layer.left = torch.linalg.qr(torch.randn(layer.out_features, 2)).Q.T.double()
                layer.right = torch.linalg.qr(torch.randn(layer.in_features, 2)).Q.T.double()

    net, x = build(Sequence), images(12)
    scorer = scorer_of(net, curvature=Unseeded(2)).fit(x)
    values = scorer.score(x).values
    np.testing.assert_allclose(scorer.score(x).values, values, rtol=1e-12)
    # The fitted set's magnitudes sum to n x the effective dimension, in its own projections only.
    total = 12 * sum(scorer.score(x).provenance["effective dimension"])
    assert -values.sum() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Invariance(), "distance"),
        (Supervised(), "loss"),
        (GaussianNoise(), "std"),
        (LoGra(), "rank"),
        (EmpiricalFisher(), "damping"),
        (ExactHessian(), "damping"),
        (Identity(), "anything"),
    ],
)
def test_settings_are_frozen(settings, name):
    with pytest.raises(FrozenInstanceError):
        setattr(settings, name, 0.5)
    assert settings == type(settings)()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_a_call_changes_nothing(dtype):
    net, x = build(Residual).float(), images(12).float()
    expected = score(net, x)
    with torch.autocast("cpu", dtype):
        found = score(net, x)
        assert torch.is_autocast_enabled("cpu")
    np.testing.assert_array_equal(found.values, expected.values)


class Random(torch.utils.data.Dataset):
    """Items that a chance changes."""

    def __init__(self, x, chance, labels=False):
        self.x, self.chance, self.labels = x, chance, labels

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        hit = bool(torch.rand(()) < self.chance)
        if self.labels:
            return self.x[i], int(hit)
        return self.x[i].flip(-1) if hit else self.x[i]


@pytest.mark.parametrize("labels", [False, True])
def test_a_data_set_of_random_items_is_refused(labels):
    net, x = build(Sequence), images(20)
    torch.manual_seed(0)
    with pytest.raises(InfluenceValueError, match="images is random: item 0 differs each time"):
        score(net, Random(x, 0.5, labels))
    np.testing.assert_array_equal(score(net, Random(x, 0.0)).values, score(net, x).values)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_numpy_integers_are_integers(kind):
    net, x = build(Sequence), images(12)
    expected = score(net, x, seed=3, draws=2, batch_size=4, curvature=LoGra(3))
    found = score(net, x, seed=kind(3), draws=kind(2), batch_size=kind(4), curvature=LoGra(kind(3)))
    np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.parametrize("label", [int, np.int64, np.uint8, lambda y: np.array([y], np.uint8)])
def test_labels_of_numpy_are_labels(label):
    net, x = build(Sequence), images(12)
    classes = torch.arange(12) % 3
    plain = [(image, int(y)) for image, y in zip(x, classes, strict=True)]
    other = [(image, label(int(y))) for image, y in zip(x, classes, strict=True)]
    expected = score(net, plain, objective=Supervised()).values
    for items in (other, [[*item] for item in other]):
        np.testing.assert_array_equal(score(net, items, objective=Supervised()).values, expected)
