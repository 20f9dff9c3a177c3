"""Encoders against torchvision's, and checkpoints of solo-learn in exactly their form."""

from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms import functional as TF

from influence_lab.pretrain.resnets import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    CifarResNet18,
    LargeResNet18,
    SoloResNet18,
    normalise,
    representation,
    standardise,
)
from influence_lab.records import results
from influence_ssl import Identity, InfluenceError, InfluenceScorer
from influence_ssl.command.main import main
from influence_ssl.encoders.loading import load_encoder

SPEC = "influence_lab.pretrain.resnets:solo_cifar10"


def trained(module, seed=0):
    """The module with other weights and statistics than it was made with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.mul_(torch.rand(value.shape, generator=generator) + 0.5)
    return module.eval()


def cifar(padding):
    """solo/methods/base.py: torchvision's network with another stem and no classifier."""
    network = resnet18()
    network.fc = nn.Identity()
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=padding, bias=False)
    network.maxpool = nn.Identity()
    return network


def large():
    network = resnet18()
    network.fc = nn.Identity()
    return network


@pytest.mark.parametrize(
    ("ours", "theirs", "side"),
    [(CifarResNet18, lambda: cifar(1), 32), (SoloResNet18, lambda: cifar(2), 32),
     (LargeResNet18, large, 70)],
)  # fmt: skip
def test_each_stem_is_torchvisions(ours, theirs, side):
    torch.manual_seed(0)
    reference = trained(theirs())
    network = ours()
    network.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), reference(x), rtol=1e-4, atol=1e-5)


def test_the_padding_of_solo_learns_stem_matters():
    torch.manual_seed(0)
    solo, plain = SoloResNet18().eval(), CifarResNet18().eval()
    plain.load_state_dict(solo.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(solo(x), plain(x), rtol=0.01)


def test_a_large_encoder_is_recorded_and_found_again(tmp_path):
    torch.manual_seed(0)
    encoder = trained(LargeResNet18(4, num_classes=3).half().float())
    results.save_encoder(encoder, tmp_path / "tiny" / "byol-0" / "encoder.safetensors")
    again = results.load_encoder("tiny", "byol", 0, tmp_path)
    assert isinstance(again, LargeResNet18)
    x = torch.randn(2, 3, 48, 48)
    bare = representation(again)
    assert isinstance(bare, LargeResNet18)
    with torch.no_grad():
        torch.testing.assert_close(bare(x), encoder.features(x), rtol=2e-2, atol=2e-2)


class Solo(nn.Module):
    """What solo-learn's BYOL holds, with heads in small; ``name`` was "encoder" before 2022."""

    def __init__(self, network, name="backbone"):
        super().__init__()
        momentum = type(network) is not nn.Identity
        setattr(self, name, network)
        self.classifier = nn.Linear(512, 10)
        self.projector = nn.Sequential(nn.Linear(512, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        self.predictor = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        if momentum:
            setattr(self, f"momentum_{name}", trained(cifar(2), seed=9))
        self.momentum_projector = nn.Linear(512, 4)


def lightning(module, path, **more):
    """Trainer.save_checkpoint of PyTorch Lightning."""
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    checkpoint = {
        "epoch": 999,
        "global_step": 195000,
        "pytorch-lightning_version": "1.5.10",
        "state_dict": module.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1000}}}},
        "callbacks": {},
        "optimizer_states": [optimiser.state_dict()],
        "lr_schedulers": [{"warmup_epochs": 10, "base_lrs": [0.4], "last_epoch": 1000}],
        **more,
    }
    torch.save(checkpoint, path)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(4):
        pixels = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return sorted((tmp_path / "photos").iterdir())


def test_a_solo_learn_checkpoint_is_scored_by_one_command(photos, capsys):
    torch.manual_seed(0)
    network = trained(cifar(2))
    lightning(Solo(network), "byol-cifar10-ep=999.ckpt")
    arguments = [
        "--data",
        "photos",
        "--encoder",
        SPEC,
        "--weights",
        "byol-cifar10-ep=999.ckpt",
        "--curvature",
        "identity",
        "--draws",
        "1",
        "--device",
        "cpu",
        "--out",
        "scores.parquet",
    ]
    assert main(["score", *arguments]) == 0
    assert "weights: names that begin with 'backbone.'" in capsys.readouterr().out
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
    x = torch.stack(
        [TF.normalize(TF.to_tensor(Image.open(path)), mean, std) for path in photos]
    )  # fmt: skip
    # Without projections, which depend on the order in which a network calls its layers.
    expected = InfluenceScorer(network, curvature=Identity(), progress=False).score(x)
    found = pd.read_parquet("scores.parquet")["score"]
    np.testing.assert_allclose(found, expected.values, rtol=1e-3)


def test_a_checkpoint_for_large_images_fits_torchvisions_encoder(tmp_path):
    torch.manual_seed(0)
    network = trained(large())
    lightning(Solo(network, "encoder"), tmp_path / "imagenet100.ckpt")
    found = load_encoder("torchvision:resnet18", str(tmp_path / "imagenet100.ckpt"))
    assert found.part == "encoder."
    assert not found.untrained
    ours = found.module.state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(ours[name], value)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_plain_state_dict_is_taken_whole(tmp_path, suffix):
    torch.manual_seed(0)
    network = trained(cifar(2))
    path = tmp_path / f"weights.{suffix}"
    save = save_file if suffix == "safetensors" else torch.save
    save(network.state_dict(), path)
    found = load_encoder(SPEC, str(path))
    assert found.part == ""
    torch.testing.assert_close(found.module.conv1.weight, network.conv1.weight)


def lose(name):
    return lambda state: {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lose("backbone.layer4.1.bn2.running_var"), "missing keys: layer4.1.bn2.running_var;"),
        (lambda s: {**s, "backbone.norm.weight": torch.ones(2)}, "foreign keys: norm.weight;"),
        (lambda s: {**s, "backbone.conv1.weight": torch.ones(64, 3, 7, 7)},
         r"conv1.weight is \(64, 3, 7, 7\) instead of \(64, 3, 3, 3\)"),
        (lambda s: {k.replace("conv", "convolution"): v for k, v in s.items()},
         r"under 'backbone.': missing keys: conv1.weight and \d+ more; "
         r"foreign keys: convolution1.weight and \d+ more;"),
    ],
)  # fmt: skip
def test_missing_and_foreign_keys_are_named(change, says, tmp_path):
    state = change(Solo(cifar(2)).state_dict())
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    with pytest.raises(InfluenceError, match=says) as caught:
        load_encoder(SPEC, str(tmp_path / "x.ckpt"))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_objects_is_refused(tmp_path):
    lightning(Solo(cifar(2)), tmp_path / "x.ckpt", hyper_parameters=Namespace(lr=0.3))
    with pytest.raises(InfluenceError, match="holds Python objects besides tensors"):
        load_encoder(SPEC, str(tmp_path / "x.ckpt"))


def test_normalise_is_torchvisions_and_takes_nothing_twice():
    pixels = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    expected = TF.normalize(pixels / 255, CIFAR10_MEAN, CIFAR10_STD)
    torch.testing.assert_close(normalise(pixels), expected)
    torch.testing.assert_close(standardise(pixels.double()), expected)
    for other in (pixels / 255, pixels.float(), pixels.int()):
        with pytest.raises(InfluenceError, match=r"normalise: images are torch\.\w+, .*uint8"):
            normalise(other)
