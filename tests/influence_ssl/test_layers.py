"""Encoders of every kind: per-example gradients against autograd, or one line with the cause."""

import copy
import threading
from types import MethodType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import Residual, Sequence, Windows, build, images, score
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from influence_ssl import Identity, InfluenceError, InfluenceScorer, Invariance

MOVED = Invariance(lambda x, index, draw, seed: x + 0.3 * x.roll(1, -1), "squared")


def magnitudes(net, x, names=None, dtype=torch.float64):
    """|g_i|² over the weights of the layers named, by plain autograd, one image at a time."""
    net = copy.deepcopy(net).eval().to(dtype).requires_grad_(True)
    modules = dict(net.named_modules())
    names = names or [n for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = list({id(modules[n].weight): modules[n].weight for n in names}.values())
    found = []
    for one in x.to(dtype):
        z, moved = net(one[None]), net((one + 0.3 * one.roll(1, -1))[None])
        loss = (z - moved).square().sum()
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        found.append(sum(g.square().sum().item() for g in gradients if g is not None))
    return np.array(found)


def check(net, x, names=None, **settings):
    """The scorer's squared gradient norms are autograd's; its provenance."""
    found = score(net, x, objective=MOVED, curvature=Identity(), **settings)
    np.testing.assert_allclose(found.magnitude, magnitudes(net, x, names), rtol=1e-8)
    return found.provenance


class SamePadding(nn.Conv2d):
    """Pads as TensorFlow does, as timm's Conv2dSame."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    """A convolution by a function of its weight, as in BiT and NFNet."""

    def forward(self, x):
        flat = self.weight.flatten(1)[None]
        weight = F.batch_norm(flat, None, None, training=True).view_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) + x @ self.weight.T.tanh()


def of_its_own(kind):
    return nn.Sequential(kind(3, 6, 3, 2), nn.GELU(), nn.Flatten(), Doubled(54, 5)).double()


class Halved(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 0.5 + weight.square(), bias)


def patched(*arguments):
    """A module whose forward was replaced, as some libraries do."""
    conv = nn.Conv2d(*arguments)
    conv.forward = MethodType(lambda own, x: F.conv2d(x, own.weight.sin(), own.bias, 2), conv)
    return conv


@pytest.mark.parametrize("kind", [Halved, patched])
def test_modules_whose_forward_computes_something_else(kind):
    torch.manual_seed(0)
    check(of_its_own(kind), images(7), batch_size=3)


@pytest.mark.parametrize("kind", [SamePadding, Standardised])
def test_modules_with_a_forward_of_their_own(kind):
    torch.manual_seed(0)
    net = of_its_own(kind) if kind is Standardised else nn.Sequential(
        kind(3, 6, 3, 2), nn.GELU(), nn.Flatten(), Doubled(96, 5)
    ).double()  # fmt: skip
    check(net, images(7), batch_size=3)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_input_of_a_module_with_its_own_forward_may_change_later(batch_size):
    class Emptied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = SamePadding(3, 6, 3, 2), nn.Linear(96, 5)

        def forward(self, x):
            x = x * 1.5
            y = self.conv(x)
            x.zero_()
            return self.head(y.tanh().flatten(1))

    check(build(Emptied), images(7), batch_size=batch_size)


def test_a_forward_that_vmap_does_not_know():
    class Asking(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2 if self.weight[0, 0].item() > 0 else 3)

    torch.manual_seed(0)
    check(nn.Sequential(nn.Flatten(), Asking(12, 4)).double(), images(5, size=2))


def test_a_forward_of_its_own_with_a_weight_made_anew():
    net = of_its_own(Standardised)
    nn.utils.parametrizations.weight_norm(net[0])
    with pytest.raises(InfluenceError, match=r"layer '0' .* leave it out with layers=\['-0'\]"):
        score(net, images(4))
    check(net, images(4), ["3"], layers=["-0"])


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.3)


class Tail(nn.Module):
    """A layer that is called twice, with another behind it, and what uses its weight besides."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(12, 6), nn.Linear(6, 4)
        self.before = self.after = lambda layer, x: 0

    def forward(self, x):
        x = x.flatten(1)
        before = self.before(self.layer, x)
        h = self.layer(x) + self.layer(x.flip(1)).sin()
        return self.last(torch.tanh(h + before + self.after(self.layer, x)))


def borrowed(layer, x):
    return F.linear(x.roll(1, 1), layer.weight)


def tripled(net):
    net.layer.register_forward_hook(lambda module, args, output: output * 3)


def borrowed_before(net):
    net.before = borrowed


def borrowed_after(net):
    net.after = borrowed


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        pruned,
    ],
)
@pytest.mark.parametrize("trouble", [None, tripled, borrowed_before, borrowed_after])
def test_a_weight_made_anew_is_checked_against_autograd(wrap, trouble):
    """As with a plain weight, a use of it that the calls do not show is found."""
    torch.manual_seed(0)
    net, x = Tail().double(), images(5, size=2)
    wrap(net.layer)
    net.eval()(x)
    plain = Tail().double()
    plain.load_state_dict(net.state_dict(), strict=False)
    plain.layer.weight.data = net.layer.weight.detach().clone()
    if trouble is None:
        found = score(net, x, objective=MOVED, curvature=Identity())
        np.testing.assert_allclose(found.magnitude, magnitudes(plain, x), rtol=1e-8)
        return
    for one in (net, plain):
        trouble(one)
        with pytest.raises(InfluenceError, match=r"layer 'layer' .* autograd's gradient of its w"):
            score(one, x, objective=MOVED)
    found = score(net, x, objective=MOVED, curvature=Identity(), layers=["last"])
    np.testing.assert_allclose(found.magnitude, magnitudes(plain, x, ["last"]), rtol=1e-8)


@pytest.mark.parametrize("share", [1e-3, 1e-5])
def test_a_use_of_a_weight_that_adds_little_is_found(share):
    """A small part of the layer's gradient, which is itself a small part of all."""
    torch.manual_seed(0)
    net = Tail().double()
    net.layer.weight.data *= 1e-3
    net.last.weight.data *= 1e-3
    net.after = lambda layer, x: share * borrowed(layer, x)
    with pytest.raises(InfluenceError, match=r"layer 'layer' .* autograd's gradient of its weight"):
        score(net, images(5, size=2), objective=MOVED)


def test_a_module_without_a_weight_that_is_never_called():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh()).double()
    net[2].spare = nn.Linear(2, 2)
    net[2].spare.weight = None
    check(net, images(5, size=2), ["1"])


def test_a_parametrised_weight_that_is_cached():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double(), images(5, size=2)
    expected = score(net, x).values
    parametrizations.weight_norm(net[1])
    with nn.utils.parametrize.cached():
        net(x)
        np.testing.assert_allclose(score(net, x).values, expected, rtol=1e-9)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), Doubled(6, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        return self.last(input=self.head(x=self.conv(input=x).relu().mean((2, 3))))


def test_layers_that_are_called_by_keyword():
    torch.manual_seed(0)
    check(Keywords().double(), images(5))


class Transformer(nn.Module):
    """PyTorch's own, whose tokens are (tokens, images, features)."""

    def __init__(self, tokens=4):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, tokens, tokens)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, norm_first=True)

    def forward(self, x):
        return self.block(self.embed(x).flatten(2).permute(2, 0, 1)).mean(0)


class Frames(nn.Module):
    """Four parts of each image, the first of all images before the second of all, as in videos."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(20, 4)

    def forward(self, x):
        parts = self.conv(torch.cat([half for part in x.split(4, 2) for half in part.split(4, 3)]))
        return self.head(parts.unflatten(0, (4, -1)).tanh().mean(0).flatten(1))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_convolution_on_frames_of_all_images(batch_size):
    check(build(Frames), images(6), batch_size=batch_size)


class Padded(nn.Sequential):
    """Paddings in words, with kernels that need more on one side."""

    def __init__(self, mode):
        super().__init__(
            nn.Conv2d(3, 4, (4, 2), padding="same", padding_mode=mode), nn.Tanh(),
            nn.Conv2d(4, 5, 3, padding="valid"), nn.Tanh(),
            nn.Conv2d(5, 3, 3, padding=(2, 1), padding_mode=mode), nn.Flatten(), nn.Tanh(),
            nn.Linear(144, 4),
        )  # fmt: skip


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_paddings_of_every_kind(mode):
    check(build(Padded, mode=mode), images(5))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_a_sequence_first_transformer(patch):
    torch.manual_seed(0)
    net = Transformer(patch).double()
    names = ["embed", "block.linear1", "block.linear2"]
    assert list(check(net, images(6), names, batch_size=4)["layers"]) == names


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("constant", [False, True])
def test_a_sequence_first_transformer_on_one_image(patch, constant, tmp_path):
    torch.manual_seed(0)
    net, x = Transformer(patch).double(), images(6)
    if constant:  # all its tokens are equal
        x[0] = 1.0
    check(net, x[:1], ["embed", "block.linear1", "block.linear2"])
    scorer = InfluenceScorer(net, MOVED, progress=False).fit(x[1:], keep=True)
    scorer.save(tmp_path)
    both = scorer.influence(x[:2], index=[7, 8]).values
    for fitted in (scorer, InfluenceScorer.load(tmp_path, net, MOVED, progress=False)):
        one = fitted.influence(x[:1], index=[7]).values
        np.testing.assert_allclose(one, both[:1], rtol=1e-8, atol=1e-10)


class Viewed(torch.autograd.Function):
    """Doubles; its backward pass calls ``view``."""

    @staticmethod
    def forward(context, x):
        return 2 * x

    @staticmethod
    def backward(context, delta):
        return 2 * delta.view(-1).view(delta.shape)


class Flat(nn.Module):
    """Flattens a feature map by what its memory layout must allow, or by reading its strides."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.head, self.how = nn.Conv2d(3, 4, 3), nn.Linear(144, 5), how

    def forward(self, x):
        x = self.conv(x).relu()
        if self.how == "view":
            return self.head(x.view(len(x), -1))
        if self.how == "view in backward":
            return self.head(Viewed.apply(x).relu().flatten(1))
        return self.head(x.as_strided((len(x), 144), (144, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["view", "strides", "view in backward"])
def test_a_feature_map_that_must_lie_contiguous(how, dtype):
    net, x = build(Flat, how=how).to(dtype), images(5).to(dtype)
    found = score(net, x, objective=MOVED, curvature=Identity(), batch_size=2)
    rtol = 1e-8 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(found.magnitude, magnitudes(net, x, dtype=dtype), rtol=rtol)


class Tapped(nn.Module):
    """A feature extractor whose hook writes into a dictionary that no copy of it reads."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 3)
        )
        self.out = {}
        self.net[2].register_forward_hook(lambda module, given, z: self.out.update(z=z))

    def forward(self, x):
        self.net(x)
        return self.out["z"].flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("earlier", [0, 1, 4, 7])
def test_an_encoder_whose_copies_behave_otherwise_is_used_itself(earlier, dtype):
    net, x = build(Tapped).to(dtype), images(5).to(dtype)
    norms = magnitudes(nn.Sequential(*net.net[:3], nn.Flatten()), x, dtype=dtype)
    with torch.no_grad():
        net(x.repeat(2, 1, 1, 1)[:earlier])
    found = score(net, x, objective=MOVED, curvature=Identity())
    np.testing.assert_allclose(found.magnitude, norms, rtol=1e-4)


def test_an_encoder_whose_copies_behave_otherwise_stays_where_it_is():
    net, x = build(Tapped), images(5)
    with torch.no_grad():
        net(x)
    message = r"^device='cpu', dtype=torch.float32: the encoder cannot be copied .* move it"
    with pytest.raises(InfluenceError, match=message):
        score(net, x, objective=MOVED, dtype=torch.float32)


class Shuffled(nn.Module):
    """Rows in an order of their own: neither images first nor images last."""

    def __init__(self):
        super().__init__()
        self.first, self.mix = nn.Linear(12, 12), nn.Linear(12, 7)

    def forward(self, x):
        rows = self.first(F.unfold(x, 2, stride=2).transpose(1, 2)).reshape(-1, 12)
        order = torch.arange(len(rows)).roll(1)
        y = self.mix(rows[order]).tanh()[order.argsort()]
        return y.reshape(len(x), -1, 7).mean(1)


def test_rows_in_another_order_are_named():
    with pytest.raises(InfluenceError, match="layer 'mix' receives its rows in an order that"):
        score(build(Shuffled), images())
    check(build(Shuffled), images(), ["first"], layers=["-mix"])


def test_an_encoder_that_takes_images_one_by_one():
    class OneByOne(Residual):
        def forward(self, x):
            return torch.cat([super(OneByOne, self).forward(one[None]) for one in x])

    with pytest.raises(InfluenceError, match="give an encoder that processes the whole batch"):
        score(build(OneByOne), images(5), objective=squared)


def squared(encode, batch, index, draw, seed):
    return encode(batch[0]).square().sum(1)


class Positions(nn.Module):
    """A bias over positions from a small network, as in Swin-V2; one linear layer behind detach."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(12, 8)
        self.bias_mlp = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 8))
        self.side, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("grid", torch.rand(16, 2))

    def forward(self, x):
        tokens = self.embed(F.unfold(x, 2, stride=2).transpose(1, 2))
        tokens = (tokens + self.bias_mlp(self.grid)).tanh()
        return self.head(tokens.mean(1) + self.side(tokens.detach()).mean(1))


def test_layers_fed_by_constants_are_left_out_and_those_behind_detach_are_not():
    net = build(Positions)
    provenance = check(net, images(5), ["embed", "side", "head"])
    assert list(provenance["layers"]) == ["embed", "side", "head"]
    assert {"bias_mlp.0.weight", "bias_mlp.2.weight"} <= set(provenance["left out"])
    with pytest.raises(InfluenceError, match=r"inputs of 'bias_mlp.0' do not depend on the image"):
        score(net, images(5), layers=["embed", "bias_mlp.0"])


class Normed(nn.Module):
    """DoRA: beside the image's rows, two layers take an identity, for norms that are detached."""

    def __init__(self, inputs):
        super().__init__()
        self.a, self.b = nn.Linear(12, 3, bias=False), nn.Linear(3, 8, bias=False)
        self.register_buffer("inputs", inputs)

    def forward(self, x):
        norms = self.b(self.a(self.inputs)).view(-1, 8).norm(dim=0).detach()
        rows = F.unfold(x, 2, stride=2).transpose(1, 2)
        return (self.b(self.a(rows)) / norms).tanh().mean(1)


@pytest.mark.parametrize("inputs", [torch.eye(12), torch.ones(12)])
def test_calls_to_which_no_gradient_comes_may_take_what_is_no_image(inputs):
    net = build(Normed, inputs=inputs)
    assert list(check(net, images(6), batch_size=4)["layers"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        (["-mlp"], ["head", "header", "1.head", "0.qkv", "1.qkv"]),
        (["-blocks"], ["head", "header"]),
        (["-blocks.0"], ["head", "header", "1.head", "1.mlp.fc", "1.qkv"]),
        (["-head", "-1.qkv"], ["header", "1.head", "0.mlp.fc", "0.qkv", "1.mlp.fc"]),
    ],
)
def test_layers_are_left_out_by_name(layers, kept):
    torch.manual_seed(0)
    mlp = lambda: nn.Sequential()  # noqa: E731
    blocks = []
    for _ in range(2):
        block = nn.Sequential()
        block.mlp, block.qkv = mlp(), nn.Linear(12, 12)
        block.mlp.fc = nn.Linear(12, 12)
        blocks.append(block)
    net = nn.Sequential(nn.Flatten())
    blocks[1].head = nn.Linear(12, 12)
    net.blocks, net.head, net.header = nn.Sequential(*blocks), nn.Linear(12, 3), nn.Linear(3, 3)
    found = score(net.double(), images(5, size=2), layers=layers).provenance["layers"]
    assert {name.removeprefix("blocks.") for name in found} == set(kept)


@pytest.mark.parametrize("kind", [iter, tuple, set, np.array, lambda names: (n for n in names)])
def test_layers_come_in_any_iterable(kind, tmp_path):
    net, x = build(Residual), images(5)
    expected = score(net, x, layers=["head", "stem"]).values
    scorer = InfluenceScorer(net, layers=kind(["head", "stem"]), progress=False).fit(x)
    scorer.save(tmp_path)
    for fitted in (scorer, InfluenceScorer.load(tmp_path, net, progress=False)):
        np.testing.assert_allclose(fitted.score(x).values, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["-hed"], "'-hed' leaves out nothing, .* encoder has: stem, down"),
        (["-norm"], "'-norm' leaves out nothing"),
        (["-ste"], "'-ste' leaves out nothing"),  # it is no whole part of 'stem'
        (["-head", "stem"], "mixes names to keep and names to leave out"),
        (["-stem", "-down", "-twice", "-depthwise", "-head"], "leaves out every"),
        ("head", "layers='head' must be a list"),
    ],
)
def test_layers_that_cannot_be_left_out(layers, message):
    with pytest.raises(InfluenceError, match=message):
        score(build(Residual), images(4), layers=layers)


class Experts(nn.Module):
    """Dark images go to one expert, bright ones to the other."""

    def __init__(self, whole):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(12, 4), nn.Linear(12, 4)])
        self.head, self.whole = nn.Linear(4, 4), whole

    def forward(self, x):
        x = x.flatten(1)
        bright = x.mean(1) > 0
        if self.whole:
            return self.head(self.experts[int(bright.any())](x))
        z = x.new_zeros(len(x), 4)
        for rows, expert in zip((~bright, bright), self.experts, strict=True):
            if rows.any():
                z = z.index_put((rows,), expert(x[rows]))
        return self.head(z)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("first", [-1, 1])
@pytest.mark.parametrize("alternating", [False, True])
def test_layers_that_depend_on_the_image_are_refused(whole, first, alternating):
    torch.manual_seed(0)
    x = torch.rand(8, 3, 2, 2).double() * first
    x[1 if alternating else slice(5, None)] *= -1
    still = Invariance(lambda x, *_: x * 0.9)
    with pytest.raises(InfluenceError, match=r"layer 'experts\.[01]' (is called|receives)"):
        score(Experts(whole).double(), x, objective=still, batch_size=3)
    if not whole:  # then the encoder does map each image on its own
        assert len(score(Experts(whole).double(), x, objective=still, layers=["-experts"])) == 8


def test_a_layer_on_fewer_rows_of_later_images_is_refused():
    """Batches of bright images alone have half the tokens."""

    class Pruned(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(12, 8), nn.Linear(8, 4)

        def forward(self, x):
            tokens = F.unfold(x, 2, stride=2).transpose(1, 2)
            tokens = tokens[:, : 8 if (x.mean((1, 2, 3)) > 0).all() else 16]
            rows = self.embed(tokens.flatten(0, 1)).tanh()  # as windows are, along the first axis
            return self.head(rows.unflatten(0, (len(x), -1)).mean(1))

    x = images(8).abs()
    x[:2] *= -1
    message = r"layer 'embed' is called on 16 rows per image .* and on 8 rows per image for later"
    with pytest.raises(InfluenceError, match=message):
        score(build(Pruned), x, objective=Invariance(lambda x, *_: x * 0.9), batch_size=3)


class Single(nn.Module):
    """Computes in float32 inside, whatever it is given, where rounding is multiplied by 1e3."""

    def __init__(self, coupling=0.0):
        super().__init__()
        self.first, self.second = nn.Linear(12, 6), nn.Linear(6, 4)
        self.coupling = coupling

    def forward(self, x):
        h = self.first(x.flatten(1))
        h = (h.float() @ torch.eye(6) * 1e3).softmax(1).to(x.dtype) + h
        return self.second(h + self.coupling * h.mean(0))


def test_an_encoder_that_computes_in_float32_inside():
    torch.manual_seed(0)
    net, x = Single(), images(6, size=2).float()
    found = score(net, x, objective=MOVED, curvature=Identity())
    np.testing.assert_allclose(found.magnitude, magnitudes(net, x), rtol=1e-2)
    with pytest.raises(InfluenceError, match="the input of layer 'second' depends on the other"):
        score(Single(1e-3), x)


def test_a_gradient_that_is_rounding_alone_is_no_reason_to_refuse():
    """Softmax does not see a constant, so the last layer's true gradient is zero."""

    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.same = nn.Linear(12, 6), nn.Linear(6, 1, bias=False)

        def forward(self, x):
            h = self.first(x.flatten(1))
            return (h + 1e3 * self.same(h)).softmax(1)

    torch.manual_seed(0)
    net, x = Blind().double(), images(6, size=2)
    found = score(net, x, objective=MOVED, curvature=Identity())
    np.testing.assert_allclose(found.magnitude, magnitudes(net, x), rtol=1e-8)


def test_views_that_nearly_coincide_are_no_reason_to_refuse():
    """The gradient of 1 − cos is then a difference that rounding takes much of."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 6)).double(), images(5, size=2)
    nn.init.constant_(net[1].bias, 1e11)
    assert (score(net, x, curvature=Identity()).magnitude > 0).all()


def test_calls_of_encode_with_different_numbers_of_views():
    """Two views of the whole image, then one of a half: as in multi-crop training."""
    torch.manual_seed(0)
    net, x = build(Residual), images(5, size=12)

    def objective(encode, batch, index, draw, seed):
        z, other = encode(torch.cat([batch[0], batch[0] * 0.5])).chunk(2)
        crop = encode(batch[0][..., :8])
        return (z - crop).square().sum(1) + (other - crop).square().sum(1)

    found = score(net, x, objective=objective, curvature=Identity())
    own, expected = copy.deepcopy(net).eval(), []
    weights = [m.weight for m in own.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for one in x.split(1):
        z, other, crop = own(one), own(one * 0.5), own(one[..., :8])
        loss = (z - crop).square().sum() + (other - crop).square().sum()
        gradients = torch.autograd.grad(loss, weights)
        expected.append(sum(g.square().sum().item() for g in gradients))
    np.testing.assert_allclose(found.magnitude, expected, rtol=1e-8)


def test_a_perturbation_is_named_instead_of_the_encoder():
    class Dice:
        def __call__(self, x, index, draw, seed):
            return x + torch.randn_like(x)

        def __repr__(self):
            return "Dice()"

    class Mean(Dice):
        def __call__(self, x, index, draw, seed):
            return x + x.mean(0)

    net, x = build(Windows), images(6)
    with pytest.raises(InfluenceError, match=r"perturbation Dice\(\) returns different values f"):
        score(net, x, objective=Invariance(Dice()))
    with pytest.raises(InfluenceError, match=r"perturbation Dice\(\) .* depend on the other"):
        score(net, x, objective=Invariance(Mean()))


def test_an_objective_that_compares_images_is_named():
    def objective(encode, batch, index, draw, seed):
        z = encode(batch[0])
        return z.square().sum(1) + z.mean()

    with pytest.raises(InfluenceError, match="the objective's loss of one example depends on"):
        score(build(Windows), images(6), objective=objective)


def test_an_image_that_takes_from_a_later_one_is_found():
    """Nothing that comes before it, or that it shares with itself alone, gives that away."""

    class Later(Windows):
        def forward(self, x):
            return super().forward(x + 1e-3 * x.roll(-1, 0) * (torch.arange(len(x)) == 0).view(
                -1, 1, 1, 1))  # fmt: skip

    class Earlier(Windows):
        def forward(self, x):
            return super().forward(x + 1e-3 * x.roll(1, 0) * (torch.arange(len(x)) == 1).view(
                -1, 1, 1, 1))  # fmt: skip

    for kind in (Later, Earlier):
        with pytest.raises(InfluenceError, match="depends on the other images"):
            score(build(kind), images(), objective=squared)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations(reentrant):
    class Checkpointed(Residual):
        def forward(self, x):
            x = F.relu(self.norm(self.stem(x)))
            x = checkpoint(self.block, x, use_reentrant=reentrant).relu()
            x = self.depthwise(x)
            return self.head(x.mean((2, 3)))

        def block(self, x):  # called again in the backward pass
            return self.twice(self.down(x).sin())

    net = build(Checkpointed)
    if reentrant:
        with pytest.raises(InfluenceError, match="checkpoints its activations with use_reentrant"):
            score(net, images(5))
    else:
        check(net, images(5))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantised_encoder_is_named():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    with pytest.raises(InfluenceError, match="layer '2' of the encoder is quantised"):
        score(quantised, images(4).float())


def test_an_encoder_made_under_inference_mode_is_named():
    net = build(Residual)
    with torch.inference_mode():
        other = build(Windows)
        net.norm.running_var = torch.ones(8)
    for made, name in ((other, "mix.weight"), (net, "norm.running_var")):
        with pytest.raises(InfluenceError, match=f"'{name}' .* created under torch.inference_mode"):
            score(made, images(4))


def test_a_default_device_changes_nothing():
    net, x = build(Sequence), images(6)
    expected = score(net, x).values
    with torch.device("meta"):
        found = score(net, x).values
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("in_place", "called", "backend"),
    [
        (False, False, "eager"), (False, True, "eager"), (True, False, "eager"),
        (True, True, "eager"), (False, True, "aot_eager"),
    ],
)  # fmt: skip
def test_a_compiled_encoder(in_place, called, backend):
    """By the backends that need no compiler."""
    torch._dynamo.reset()
    plain, x = build(Sequence), images(6)
    net = copy.deepcopy(plain)
    if in_place:
        net.compile(backend=backend)
    else:
        net = torch.compile(net, backend=backend)
    if called:
        net.eval()(x)
    found = score(net, x, objective=MOVED, curvature=Identity(), batch_size=4)
    np.testing.assert_allclose(found.magnitude, magnitudes(plain, x), rtol=1e-8)


def test_a_buffer_that_is_assigned_anew_is_restored():
    class Counts(Windows):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen = self.seen + len(x)
            self.register_buffer("last", x[0])
            return super().forward(x)

    net = build(Counts)
    before = net.seen
    score(net, images(5))
    assert net.seen is before
    assert before == 0
    assert [name for name, _ in net.named_buffers()] == ["seen"]


class Waiting(Windows):
    """Waits in its first pass until another thread has got there too, or has ended."""

    barrier = None

    def forward(self, x):
        if self.barrier is not None:
            barrier, self.barrier = self.barrier, None
            barrier.wait(20)
        return super().forward(x)


def test_scorers_of_two_encoders_run_side_by_side():
    x, found = images(20), {}
    expected = [score(build(Waiting, seed=s), x).values for s in (0, 1)]
    barrier = threading.Barrier(2)  # neither goes on before both are in their encoders

    def run(s, net):
        net.barrier = barrier
        found[s] = score(net, x).values

    nets = [build(Waiting, seed=s) for s in (0, 1)]
    threads = [threading.Thread(target=run, args=(s, nets[s])) for s in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for s in (0, 1):
        np.testing.assert_array_equal(found[s], expected[s])


def test_a_second_thread_on_the_same_encoder_is_refused():
    net, x, caught = build(Windows), images(6), []

    def perturbation(x, index, draw, seed):
        if not caught:  # while the first scorer runs, another thread tries a part of its encoder
            caught.append(None)
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        return x * 0.9

    def run():
        try:
            score(nn.Sequential(net), x)
        except InfluenceError as error:
            caught.append(error)

    expected = score(net, x, objective=Invariance(lambda x, *_: x * 0.9)).values
    found = score(net, x, objective=Invariance(perturbation)).values
    assert "another thread is scoring" in str(caught[1])
    np.testing.assert_array_equal(found, expected)
    assert len(score(net, x)) == 6  # and is free again
