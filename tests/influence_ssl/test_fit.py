"""A fit that outlives its process."""

import functools
import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from nets import Residual, Sequence, build, images

from influence_ssl import (
    EmpiricalFisher,
    ExactHessian,
    GaussianNoise,
    Identity,
    InfluenceError,
    InfluenceScorer,
    Invariance,
    LoGra,
    Relative,
)
from influence_ssl.encoders.loading import import_function

CURVATURES = {
    "logra": LoGra(3),
    "joint": LoGra(3, joint=True, damping=0.01),
    "pseudo-inverse": LoGra(3, damping=0.0),
    "dual": EmpiricalFisher(),
    "identity": Identity(),
}


def scorer_of(net, **settings):
    return InfluenceScorer(net, progress=False, **settings)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("curvature", CURVATURES.values(), ids=CURVATURES)
def test_a_loaded_fit_gives_the_same_numbers(tmp_path, curvature, dtype):
    net, x, y = build(Residual).to(dtype), images(12).to(dtype), images(16)[12:].to(dtype)
    names = [f"{i}.png" for i in range(12)]
    scorer = scorer_of(net, curvature=curvature, draws=2, seed=3).fit(x, names=names, keep=True)
    scorer.save(tmp_path / "fit")
    loaded = InfluenceScorer.load(tmp_path / "fit", net, progress=False)
    expected, found = scorer.score(y), loaded.score(y)
    # Up to rounding: what is read has another layout in memory.
    tight = 1e-11 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(found.values, expected.values, rtol=tight)
    assert found.provenance == expected.provenance
    one, other = scorer.influence(y, top=3), loaded.influence(y, top=3)
    np.testing.assert_allclose(other.values, one.values, rtol=tight, atol=tight)
    np.testing.assert_array_equal(other.positions, one.positions)
    assert other.to_pandas()["name"].tolist() == one.to_pandas()["name"].tolist()


@pytest.mark.parametrize(
    ("integer", "number"), [(np.int64, np.float64), (np.uint8, np.float32), (np.int32, np.float16)]
)
def test_numbers_of_numpy_are_stored_as_numbers(tmp_path, integer, number):
    half = number(0.5)
    perturbation = GaussianNoise(half, half)
    settings = [
        (LoGra(integer(3), joint=np.True_, damping=half, seed=integer(1)), LoGra(3, True, 0.5, 1)),
        (LoGra(3, damping=Relative(half)), LoGra(3, damping=Relative(0.5))),
        (EmpiricalFisher(half), EmpiricalFisher(0.5)),
        (ExactHessian(half), ExactHessian(0.5)),
    ]
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).double()
    for given, expected in settings:
        assert repr(given) == repr(expected)
        objective = Invariance(perturbation)
        scorer_of(net, curvature=given, objective=objective).fit(images(5, size=2)).save(tmp_path)
        loaded = InfluenceScorer.load(tmp_path, net, progress=False)
        assert repr(loaded.curvature) == repr(expected)
        assert repr(loaded.objective) == repr(Invariance(GaussianNoise(0.5, 0.5)))


def test_an_indefinite_hessian_is_loaded_with_its_signs(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(12, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)
    ).double()
    x = images(5, size=2)
    scorer = scorer_of(net, curvature=ExactHessian(damping=1e-3)).fit(x, keep=True)
    scorer.save(tmp_path)
    loaded = InfluenceScorer.load(tmp_path, net, progress=False)
    expected = scorer.influence(x).values
    np.testing.assert_allclose(loaded.influence(x).values, expected, rtol=1e-9, atol=1e-12)


def test_a_fit_is_loaded_in_another_process(tmp_path):
    net, x = build(Sequence), images(10)
    scorer_of(net).fit(x).save(tmp_path / "fit")
    torch.save((net, x), tmp_path / "both.pt")
    program = f"""
import sys, torch
sys.path.insert(0, {str(sys.path[0])!r})
from influence_ssl import InfluenceScorer
net, x = torch.load({str(tmp_path / "both.pt")!r}, weights_only=False)
print(*InfluenceScorer.load({str(tmp_path / "fit")!r}, net, progress=False).score(x).values)
"""
    # With this process's own settings: other vector units round the noise in another way.
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=paths, check=True
    )
    found = [float(number) for number in done.stdout.split()]
    np.testing.assert_allclose(found, scorer_of(net).fit(x).score(x).values, rtol=1e-9)


SCRIPT = """
import torch
from torch import nn
from influence_ssl import InfluenceScorer, Invariance

SCALE = 0.3
x = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

def scaled(x):
    return x * SCALE

class Net(nn.Module):
    gain = 2.0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(scaled(self.first(x).relu().mean((2, 3)) * self.gain))

class Brighter:
    share = 0.1

    def __call__(self, x, index, draw, seed):
        return x + self.share * scaled(x).square()

def net():
    return Net().double()

if __name__ == "__main__":
    scorer = InfluenceScorer(net(), Invariance(Brighter()), progress=False, store="store").fit(x)
    scorer.save("fit")
    print(*scorer.score(x).values)
"""


@pytest.mark.parametrize("command", [False, True])
def test_a_script_s_fit_and_store_serve_those_who_import_it(tmp_path, monkeypatch, command):
    """Its classes are those of ``__main__`` while it runs; a command gives it a name of its own."""
    (tmp_path / "trained_by_script.py").write_text(SCRIPT)
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "trained_by_script.py"],
        capture_output=True, text=True, env=paths, check=True, cwd=tmp_path,
    )  # fmt: skip
    expected = [float(number) for number in done.stdout.split()]
    monkeypatch.chdir(tmp_path)
    if command:
        function = import_function("trained_by_script.py:net", "--encoder")
        script = sys.modules[function.__module__]
    else:
        monkeypatch.syspath_prepend(str(tmp_path))
        script = importlib.import_module("trained_by_script")
    objective = Invariance(script.Brighter())
    load = functools.partial(InfluenceScorer.load, "fit", objective=objective, progress=False)
    stored = functools.partial(scorer_of, objective=objective, store="store")
    for scorer in (load(encoder=script.net()), stored(script.net())):
        np.testing.assert_allclose(scorer.score(script.x).values, expected, rtol=1e-9)
    monkeypatch.setattr(script, "SCALE", 0.4)
    with pytest.raises(InfluenceError, match=r"trained_by_script\.SCALE changed since fit"):
        load(encoder=script.net()).score(script.x)
    with pytest.raises(InfluenceError, match=r"differed in .*trained_by_script\.SCALE"):
        stored(script.net()).score(script.x)


def closure(factor):
    return Invariance(lambda x, index, draw, seed: x * (1 + factor))


def test_a_part_of_one_s_own_is_given_and_checked(tmp_path):
    net, x = build(Sequence), images(10)
    expected = scorer_of(net, objective=closure(0.1)).fit(x)
    expected.save(tmp_path)
    with pytest.raises(InfluenceError, match="the fit used your own objective"):
        InfluenceScorer.load(tmp_path, net)
    loaded = InfluenceScorer.load(tmp_path, net, objective=closure(0.1), progress=False)
    np.testing.assert_allclose(loaded.score(x).values, expected.score(x).values, rtol=1e-11)
    other = InfluenceScorer.load(tmp_path, net, objective=closure(0.2), progress=False)
    with pytest.raises(InfluenceError, match=r"^the objective's .*factor changed since fit"):
        other.score(x)


def test_a_fit_with_an_objective_apart_is_not_saved(tmp_path):
    net, x = build(Sequence), images(10)
    scorer = scorer_of(net).fit(x, objective=closure(0.1))
    with pytest.raises(InfluenceError, match="another objective than the scorer"):
        scorer.save(tmp_path)


def test_another_encoder_or_argument_is_refused(tmp_path):
    net, x = build(Sequence), images(10)
    with pytest.raises(InfluenceError, match="the scorer is not fitted"):
        scorer_of(net).save(tmp_path)
    scorer_of(net).fit(x).save(tmp_path)
    with pytest.raises(InfluenceError, match="an encoder with different modules or weights"):
        InfluenceScorer.load(tmp_path, build(Sequence, seed=1))
    with pytest.raises(InfluenceError, match="an encoder with different modules or weights"):
        InfluenceScorer.load(tmp_path, build(Residual))
    with pytest.raises(InfluenceError, match=r"curvature=LoGra\(rank=2.* differs from the fit's"):
        InfluenceScorer.load(tmp_path, net, curvature=LoGra(2))
    loaded = InfluenceScorer.load(tmp_path, net, progress=False)
    with torch.no_grad():
        next(net.parameters()).mul_(1.01)
    with pytest.raises(InfluenceError, match="the encoder or its weights changed since fit"):
        loaded.score(x)


class Forms(LoGra):
    def fit(self, gradients):
        return lambda g: g.double().square().sum(1)


def test_what_cannot_be_saved_or_read_is_one_line(tmp_path):
    net, x = build(Sequence), images(10)
    with pytest.raises(InfluenceError, match="cannot be saved; its fit must return"):
        scorer_of(net, curvature=Forms(2)).fit(x).save(tmp_path)
    with pytest.raises(InfluenceError, match="holds no saved fit: No such file"):
        InfluenceScorer.load(tmp_path / "none", net)
    scorer_of(net).fit(x).save(tmp_path)
    tensors, words = tmp_path / "fit.safetensors", tmp_path / "fit.json"
    whole, said = tensors.read_bytes(), words.read_text()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InfluenceError, match="is damaged or belongs to another fit"):
        InfluenceScorer.load(tmp_path, net)
    tensors.write_bytes(whole)
    for broken, message in (
        (said[:50], "is damaged; save it again"),
        (json.dumps({**json.loads(said), "format": 7}), "saved in format 7"),
        (json.dumps({**json.loads(said), "blocks": [{"kind": "os"}]}), "is not a fit that this"),
        ("{}", "is not a fit that this"),
        ("[]", "is not a fit that this"),
    ):
        words.write_text(broken)
        with pytest.raises(InfluenceError, match=message):
            InfluenceScorer.load(tmp_path, net)
