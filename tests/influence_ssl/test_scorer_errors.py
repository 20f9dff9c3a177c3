"""What the scorer refuses: encoders, images, arguments and settings that give no score."""

import re

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from nets import Residual, Windows, build, images, score
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from influence_ssl import (
    Alignment,
    EmpiricalFisher,
    ExactHessian,
    GaussianNoise,
    Identity,
    InfluenceError,
    InfluenceScorer,
    Invariance,
    LoGra,
    Relative,
    Scores,
    Supervised,
)
from influence_ssl.analysis.ranking import read_rows
from influence_ssl.encoders.loading import load_encoder
from influence_ssl.files.images import ImageFiles
from influence_ssl.perturbations import example_generator


class Mixing(nn.Module):
    """Subtracts the batch mean after its first layer: a score would depend on the company."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 6), nn.Linear(6, 4)

    def forward(self, x):
        h = self.first(x.flatten(1))
        return self.second(h - h.mean(0) * (len(h) > 2))


def test_a_little_mixing_is_found_in_float32_too():
    """A coupling of 1e-4 drowns in no rounding: the check runs in float64."""

    class Coupled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 6), nn.Linear(6, 4)

        def forward(self, x):
            h = self.first(x.flatten(1))
            return self.second(h + 1e-4 * h.mean(0))

    torch.manual_seed(0)
    with pytest.raises(InfluenceError, match="the input of layer 'second' depends on"):
        score(Coupled(), X)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(12, 4)

    def forward(self, x):
        return self.function(self.linear, x.flatten(1))


class Again(nn.Module):
    """Uses a weight twice, once without calling its module."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 12)

    def forward(self, x):
        return nn.functional.linear(self.linear(x.flatten(1)), self.linear.weight)


class Doubling(nn.Linear):
    """Doubles its input in place."""

    def forward(self, x):
        return super().forward(x.mul_(2))


X = images(6, size=2).float()
BAD_ENCODERS = {
    "no Conv2d or Linear module is called": nn.Sequential(nn.Flatten(), nn.LayerNorm(12)),
    "has no floating-point weights": nn.Flatten(),
    r"must return \(B, D\)": Lambda(lambda linear, x: linear(x)[:, :, None]),
    "returned a tuple": Lambda(lambda linear, x: (linear(x), x)),
    "the input of layer 'second' depends on the other images": Mixing(),
    r"layer 'linear' \(Linear\): autograd's gradient of its weight differs": Again(),
    "the module changes its input in place": nn.Sequential(nn.Flatten(), Doubling(12, 4)),
    "representation of the clean image 0 is zero": Lambda(lambda linear, x: linear(x) * 0),
    "representation of the clean image 0 is not finite": Lambda(lambda linear, x: linear(x) / 0),
    "clean image 0 is not finite; check": Lambda(
        lambda linear, x: linear(x) / torch.tensor([1.0, 1.0, 0.0, 1.0])
    ),
    r"maps \(2, 3, 2, 2\) to \(4, 4\); it must return": Lambda(
        lambda linear, x: torch.cat([linear(x), linear(x)])
    ),
    "the input of layer 'linear' is random, because two passes over one image differ": Lambda(
        lambda linear, x: linear(nn.functional.dropout(x, 0.5))
    ),
}


@pytest.mark.parametrize("message", BAD_ENCODERS)
def test_unusable_encoders(message):
    torch.manual_seed(0)
    with pytest.raises(InfluenceError, match=message) as caught:
        score(BAD_ENCODERS[message], X)
    assert "\n" not in str(caught.value)


def test_a_layer_whose_rows_do_not_divide_is_refused_or_left_out():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

        def forward(self, x):
            x = x.flatten(1)
            return self.head(x + self.odd(torch.cat([x, x[:1]]))[:-1])

    torch.manual_seed(0)
    with pytest.raises(InfluenceError, match="layer 'odd' receives"):
        score(Odd(), images(7, size=2).float())
    assert len(score(Odd(), images(7, size=2).float(), layers=["head"])) == 7


class Mixed:
    """One of its images is made of integers."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return X[i].byte() if i == 3 else X[i]


class Iterated(IterableDataset):
    def __iter__(self):
        return iter(X)


class Ragged:
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return torch.zeros(3, 2, 2 + (i == 2))


def spoiled(value):
    x = X.clone()
    x[4, 0, 1, 1] = value
    return x


BAD_IMAGES = {
    "images is empty": X[:0],
    "image 2 has shape": Ragged(),
    "image 4 has NaN or infinite": spoiled(float("nan")),
    "image 4 has NaN or infinite values": spoiled(float("inf")),
    "images are torch.uint8": X.byte(),
    "images are torch.uint8; convert": Mixed(),
    "lacks a length": iter([X]),
    "or items by number": DataLoader(TensorDataset(X)),
    r"iterable only, list\(dataset\) is map-style": Iterated(),
    r"item 0 of images does not begin with a tensor: \('a.png',\)": ["a.png"],
}


@pytest.mark.parametrize("message", BAD_IMAGES)
def test_unusable_images(message):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(InfluenceError, match=message) as caught:
        score(net, BAD_IMAGES[message], batch_size=2)
    assert "\n" not in str(caught.value)


def test_an_iterable_data_set_is_scored_as_a_list():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    assert np.array_equal(score(net, list(Iterated())).values, score(net, X).values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoGra(rank=0), "rank=0 must be None or an integer ≥ 1"),
        (lambda: LoGra(damping=-1.0), "damping=-1.0 must be finite and at least 0"),
        (lambda: EmpiricalFisher(float("nan")), "damping=nan"),
        (lambda: EmpiricalFisher("0.1"), "damping='0.1' must be a number"),
        (lambda: ExactHessian(-0.1), "damping=-0.1"),
        (lambda: ExactHessian(Relative(0.1)), "must be a float"),
        (lambda: Relative(-1), "c=-1 must be finite"),
        (lambda: Relative("0.1"), "Relative: c='0.1' must be a number"),
        (lambda: LoGra(seed="1"), "seed='1' must be an integer"),
        (lambda: LoGra(joint="no"), "joint='no' must be True or False"),
        (lambda: GaussianNoise(std=-0.1), "std=-0.1"),
        (lambda: GaussianNoise(None), "GaussianNoise: mean=None must be a number"),
        (lambda: GaussianNoise(std=[0.2]), r"GaussianNoise: std=\[0.2\] must be a number"),
        (lambda: Invariance(distance=np.zeros(2)), "distance=.* is unknown"),
        (lambda: Supervised(np.zeros(2)), "loss=.* is unknown"),
        (lambda: InfluenceScorer(build(Windows), store=3), "store=3 must be a path"),
        (lambda: InfluenceScorer(build(Windows), store=b"x"), "store=b'x' must be a path"),
        (lambda: InfluenceScorer(build(Windows), dtype=np.zeros(2)), "floating-point torch.dtype"),
        (lambda: InfluenceScorer(build(Windows), dtype=0), "dtype=0 must be a floating"),
        (lambda: InfluenceScorer.load("x", "encoder"), "encoder is a str"),
        (lambda: Scores.load(None), "path=None must be a path"),
        (lambda: ImageFiles(3), "source=3 must be a path"),
        (lambda: load_encoder(3), "named by a string"),
        (lambda: read_rows(3), "path=3 must be a path"),
        (lambda: example_generator(0, "a", 0), "index='a' and draw=0 must be integers"),
        (lambda: example_generator(0, -1, 0), "-1 is negative"),
        (lambda: Invariance(distance="dot"), "distance='dot' is unknown"),
        (lambda: Invariance(0.2), "perturbation is a float"),
        (lambda: Supervised("hinge"), "loss='hinge' is unknown"),
        (lambda: InfluenceScorer(lambda x: x), "encoder is a function"),
        (lambda: InfluenceScorer(build(Windows), draws=0), "draws=0 must be an integer"),
        (lambda: InfluenceScorer(build(Windows), dtype=torch.int8), "floating-point torch.dtype"),
        (lambda: InfluenceScorer(build(Windows), dtype="bf16"), "dtype='bf16' must be a floating"),
        (lambda: InfluenceScorer(build(Windows), layers=3), "layers=3 must be a list of names"),
        (lambda: InfluenceScorer(build(Windows), layers="head"), "layers='head' must be a list"),
        (lambda: InfluenceScorer(build(Windows), layers=[1]), r"layers=\[1\] must be a list"),
        (lambda: InfluenceScorer(build(Windows), Invariance), "an instance, such as Invariance"),
        (lambda: InfluenceScorer(build(Windows), "cosine"), "objective='cosine' must be"),
        (lambda: InfluenceScorer(build(Windows), curvature=LoGra), "an instance, such as LoGra"),
        (lambda: InfluenceScorer(build(Windows), curvature="LoGra"), "curvature='LoGra' must be"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make, message):
    with pytest.raises(InfluenceError, match=message):
        make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"layers": ["hed"]},
            "'hed' is not a Conv2d or Linear of the encoder; the encoder has: stem",
        ),
        ({"layers": ["norm"]}, "'norm' is not a Conv2d or Linear"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used"),
        ({"device": ["cpu"]}, r"device=.* cannot be used"),
        ({"objective": Supervised()}, "needs labels"),
        ({"objective": lambda encode, batch, *_: 0.5}, "the objective returned a float"),
        (
            {"objective": Invariance(distance=lambda z, w: None)},
            "the objective returned a NoneType",
        ),
        (
            {"objective": lambda encode, batch, *_: encode(batch[0]).sum()[None]},
            "must return one loss per example",
        ),
        (
            {"objective": lambda encode, batch, *_: encode(batch[0]).square().sum(1, keepdim=True)},
            r"returned shape \(1, 1\) for 1 examples; it must return one loss per example",
        ),
        ({"objective": Invariance(lambda x, *_: x[:, :2])}, "must keep the shape"),
    ],
)
def test_settings_that_do_not_fit_the_encoder(settings, message):
    with pytest.raises(InfluenceError, match=message):
        score(build(Residual), images(4), **settings)


def raising(*_):
    raise KeyError("no\nsuch key")


# What fails, and what is said of it.
WRONG_FUNCTIONS = {
    "raises": (raising, r"fails with KeyError: .*; it is called "),
    "takes other arguments": (lambda: 3, "fails with TypeError: .* 0 positional arguments but"),
    "returns nothing": (lambda *_: None, "returns a NoneType; it is called"),
    "returns an array": (lambda x, *_: x.numpy(), "returns a ndarray; it is called"),
}


@pytest.mark.parametrize("case", WRONG_FUNCTIONS)
@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (Invariance, r"^perturbation <function .*; it is called .* a tensor of x's shape\.$"),
        (Alignment, r"^Alignment: augment <function .*; it is called .* view of it as a tensor\.$"),
    ],
)
def test_a_function_that_makes_no_view_is_named(case, objective, said):
    function, message = WRONG_FUNCTIONS[case]
    with pytest.raises(InfluenceError, match=message) as caught:
        score(build(Residual), images(4), objective=objective(function))
    assert re.search(said, str(caught.value))
    if case == "raises":
        assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": 3}, "names=3 must hold one name per image"),
        ({"names": iter("ab")}, "names holds 2 names"),
        ({"group": 3}, "group must hold one plain label"),
        ({"group": torch.tensor(3)}, "group must hold one plain label"),
        ({"group": iter("ab")}, "group holds 2 labels for 4"),
        ({"objective": 3}, "objective=3 must be an instance"),
        ({"objective": Invariance}, "must be an instance, such as Invariance"),
        ({"normalise": np.zeros(2)}, "normalise=.* must be None or one of"),
    ],
)
def test_bad_arguments_of_influence(arguments, message):
    scorer = InfluenceScorer(build(Windows), progress=False).fit(x := images(4), keep=True)
    with pytest.raises(InfluenceError, match=message):
        scorer.influence(x, **arguments)


def test_bad_arguments_of_a_fitted_scorer(tmp_path):
    scorer, x = InfluenceScorer(net := build(Windows), progress=False), images(4)
    scores = scorer.fit(x).score(x)
    for call, message in (
        (lambda: scorer.fit(x, objective=3), "objective=3 must be an instance"),
        (lambda: scorer.fit(x, keep=np.zeros(2)), "keep=.* must be True, False"),
        (
            lambda: scorer.score(torch.zeros(4)),
            r"images has shape \(4,\); give a tensor \(N, ...\)",
        ),
        (lambda: scorer.score(torch.zeros(())), r"images has shape \(\); give"),
        (lambda: scorer.save(3), "folder=3 must be a path"),
        (lambda: scores.save(None), "path=None must be a path"),
        (lambda: scores.order(np.zeros(2)), "which=.* must be"),
    ):
        with pytest.raises(InfluenceError, match=message):
            call()
    scorer.save(tmp_path)
    with pytest.raises(InfluenceError, match="device='nonsense' cannot be used"):
        InfluenceScorer.load(tmp_path, net, device="nonsense")


def test_arguments_of_any_kind_that_holds_them():
    scorer = InfluenceScorer(build(Windows), progress=False).fit(x := images(4), keep=True)
    found = scorer.influence(x, names=iter("abcd"), group=iter("aabb"))
    expected = scorer.influence(x, names=[*"abcd"], group=[*"aabb"])
    np.testing.assert_array_equal(found.values, expected.values)
    assert list(found.queries) == [*"abcd"]
    assert list(scorer.score(x, names=iter("abcd")).names) == [*"abcd"]
    assert GaussianNoise(std=torch.tensor(0.5)) == GaussianNoise(std=0.5)
    same = example_generator(1, torch.tensor(2), np.int64(3)), example_generator(1, 2, 3)
    assert same[0].initial_seed() == same[1].initial_seed()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, InfluenceError])
def test_a_perturbation_that_runs_out_of_memory_says_so_itself(error):
    """So does one that raises an error of the library's own kind."""

    def greedy(*_):
        raise error("too much")

    with pytest.raises(error) as caught:
        score(build(Residual), images(4), objective=Invariance(greedy))
    assert str(caught.value) == "too much"


CLASSES = torch.arange(6) % 4
LABELS = {
    "floats": (CLASSES.float(), r"labels of shape \(1,\) and torch.float32 do not fit .*\(1, 4\)"),
    "a column of floats": (
        CLASSES[:, None].double(),
        r"labels of shape \(1, 1\) and torch.float64",
    ),
    "one-hot integers": (F.one_hot(CLASSES), r"\(1, 4\) and torch.int64 .* one_hot.argmax\(1\)"),
    "a class too many": (CLASSES + 1, "image 3 has the label 4, but the classes of its 4 logits"),
    "a class below": (CLASSES - 1, "image 0 has the label -1, but the classes .* are 0 to 3"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_name_no_classes(case):
    labels, message = LABELS[case]
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(InfluenceError, match=message):
        score(net, TensorDataset(X, labels), objective=Supervised())


def test_labels_come_as_numbers_columns_or_probabilities():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    kinds = CLASSES, CLASSES[:, None], CLASSES.byte(), F.one_hot(CLASSES).double()
    found = [score(net, TensorDataset(X.double(), y), objective=Supervised()).values for y in kinds]
    for values in found[1:]:
        np.testing.assert_allclose(values, found[0], rtol=1e-9)


def test_an_image_without_a_label_scores_zero():
    """PyTorch's cross-entropy leaves out the label -100; the others score as without it."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    settings = {"objective": Supervised(), "curvature": Identity()}
    whole = score(net, TensorDataset(X.double(), CLASSES), **settings).values
    some = torch.where(torch.arange(6) == 3, -100, CLASSES)
    found = score(net, TensorDataset(X.double(), some), **settings).values
    np.testing.assert_allclose(found, np.where(np.arange(6) == 3, 0, whole), rtol=1e-12)
    assert whole.all()


def test_a_bad_image_or_label_is_named_by_its_index():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False))
    black, labels = X.clone(), CLASSES.clone()
    black[4], labels[3] = 0, 7
    cases = [
        (black, Invariance(lambda x, *_: x + 1), "representation of the clean image 14 is zero"),
        (TensorDataset(X, labels), Supervised(), "image 13 has the label 7"),
    ]
    for data, objective, message in cases:
        with pytest.raises(InfluenceError, match=message):
            InfluenceScorer(net, objective, progress=False).score(data, index=range(10, 16))


def test_an_objective_that_differentiates_its_input():
    def steepness(encode, batch, *_):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(encode(x).sum(), x, create_graph=True)
        return slope.flatten(1).square().sum(1)

    with pytest.raises(InfluenceError, match="a gradient with respect to its images, but encode"):
        score(build(Windows), images(4), objective=steepness)


def scripted(x):
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))


NOT_YET = "has no values yet, because its lazy layer has never been called; call the encoder once"
UNHOOKED = {
    "scripted": (scripted, "^the encoder is a TorchScript module, .* before torch.jit.script or"),
    "traced": (lambda x: torch.jit.trace(nn.Linear(2, 3), x), "^the encoder is a TorchScript mod"),
    "scripted within": (lambda x: nn.Sequential(scripted(x)), "layer '0' of the encoder is a Tor"),
    "lazy": (lambda x: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), f"'1.weight' .* {NOT_YET}"),
    "lazy below": (
        lambda x: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.LazyLinear(4)),
        f"'2.weight' of the encoder {NOT_YET}",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("case", UNHOOKED)
def test_an_encoder_whose_layers_are_not_yet_or_no_longer_layers(case, tmp_path):
    make, message = UNHOOKED[case]
    encoder = make(X)
    InfluenceScorer(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), progress=False).fit(X).save(
        tmp_path
    )
    calls = InfluenceScorer(encoder).score, lambda x: InfluenceScorer.load(tmp_path, encoder)
    for call in calls:
        with pytest.raises(InfluenceError, match=message):
            call(X)


@pytest.mark.parametrize("detach", [torch.no_grad(), lambda f: lambda x: f(x).detach()])
def test_an_encoder_that_lets_no_gradient_through(detach):
    net = build(Windows)
    net.forward = detach(net.forward)
    with pytest.raises(InfluenceError, match="the losses have no gradient: the encoder"):
        score(net, images(4))


def test_a_wrong_number_of_names_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(LoGra, "fit", None)
    with pytest.raises(InfluenceError, match="names holds 3 names; give one per image"):
        InfluenceScorer(build(Windows)).score(images(4), names=list("abc"))


BAD_INDICES = {
    "fractions": np.arange(6) * 1.5,
    "fractions as a tensor": torch.arange(6) * 0.5,
    "a number beyond float's integers": [0, 1, 2, 3, 4, 1e30],
    "infinity": [0, 1, 2, 3, 4, float("inf")],
    "no number": [0, 1, 2, 3, 4, float("nan")],
    "a mask": np.ones(6, bool),
    "a mask as a tensor": torch.ones(6, dtype=torch.bool),
    "a mask as a list": [True] * 6,
    "a mask of pandas": pandas.array([True] * 6, dtype="boolean"),
    "names": list("abcdef"),
    "digits": list("012345"),
    "a missing number": pandas.array([0, 1, 2, 3, 4, None], dtype="Int64"),
    "negative": np.arange(6) - 1,
    "too large": np.arange(6) + 2.0**63,
    "too large for 64 bits": [0, 1, 2, 3, 4, 2**63],
    "two columns": np.arange(12).reshape(6, 2),
    "rows of several lengths": [[0], [1, 2], [3], [4], [5], [6]],
    "too few": range(5),
    "one number": 3,
}


@pytest.mark.parametrize("kind", BAD_INDICES)
def test_an_index_that_is_not_made_of_integers_is_refused(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    scorer = InfluenceScorer(net, progress=False).fit(X, keep=True)
    calls = scorer.score, scorer.fit, scorer.embed, scorer.influence
    for call in (*calls, lambda x, index: next(scorer.gradients(x, index))):
        with pytest.raises(InfluenceError, match="index must hold 6 integers ≥ 0, one per image"):
            call(X, index=BAD_INDICES[kind])


@pytest.mark.parametrize(
    "kind",
    [
        list,
        tuple,
        np.array,
        torch.tensor,
        lambda x: np.array(x, np.uint8),
        lambda x: np.array(x, object),
        lambda x: np.array(x, float),
        lambda x: torch.tensor(x, dtype=torch.int16),
        lambda x: [torch.tensor(i) for i in x],
        lambda x: pandas.Series(x, index=[5, 4, 3, 2, 1, 0]),
        lambda x: pandas.array(x, dtype="Int64"),
        lambda x: pandas.Index(x),
    ],
)
def test_an_index_of_any_kind_of_integers(kind):
    net, numbers = build(Windows), [7, 3, 1, 0, 9, 200]
    expected = score(net, images(6)).values
    scorer = InfluenceScorer(net, progress=False)
    found = scorer.score(images(6), index=kind(numbers))
    assert found.index.tolist() == numbers
    assert found.values[3] != expected[3]  # image 3 has the noise of number 0
    np.testing.assert_array_equal(found.values, scorer.score(images(6), index=numbers).values)


def test_indices_may_be_as_large_as_64_bits_allow():
    net, numbers = build(Windows), [2**63 - 1, *range(2**62 + 1, 2**62 + 6)]
    assert InfluenceScorer(net, progress=False).score(images(6), numbers).index.tolist() == numbers


def test_a_seed_of_any_size_projects():
    scores = [
        InfluenceScorer(build(Windows), curvature=LoGra(2, seed=seed)).score(images(4)).values
        for seed in (0, 2**63, 2**70)
    ]
    assert len({tuple(values) for values in scores}) == 3


def test_a_named_layer_that_is_never_called():
    net = build(Residual)
    net.spare = nn.Linear(2, 2).double()
    with pytest.raises(InfluenceError, match="'spare' is never called"):
        score(net, images(4), layers=["head", "spare"])
    assert len(score(net, images(4), layers=["head"])) == 4


@pytest.mark.parametrize(
    ("curvature", "message"),
    [
        (LoGra(rank=8, joint=True), r"the largest rank that does is [1-7]\."),
        (LoGra(rank=None), "the largest rank that does is"),
        (EmpiricalFisher(), "the largest number that does is"),
        (ExactHessian(), "the largest number that does is"),
    ],
)
def test_too_little_memory_names_the_largest_that_fits(monkeypatch, curvature, message):
    monkeypatch.setattr("influence_ssl.curvature.free_memory", lambda device: 24.0 * 40**2)
    with pytest.raises(InfluenceError, match=message):
        score(build(Residual), images(60), curvature=curvature)


def test_an_error_of_the_encoder_comes_with_the_shape_of_the_images():
    """One image without the batch's axis is taken for several; PyTorch's words alone hide that."""
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 2))
    x = torch.rand(4, 3, 8, 8)
    fitted = InfluenceScorer(net, progress=False).fit(x, keep=True)
    for call in (lambda: score(net, x[0]), lambda: fitted.influence(x[0])):
        with pytest.raises(RuntimeError, match="to have 3 channels") as error:
            call()
        assert error.value.__notes__ == ["in a first pass over images of shape (8, 8)"]
