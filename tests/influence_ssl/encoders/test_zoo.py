"""timm's and torchvision's encoders through the command against the same made by hand."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision import models

from influence_ssl import InfluenceScorer, Invariance, Scores
from influence_ssl.command.main import main
from influence_ssl.encoders.zoo import from_zoo

MINE = """
import timm
import torch
from torch import nn
from torchvision.transforms import functional as TF


def small(name, side, **settings):
    encoder = timm.create_model(name, img_size=side, num_classes=0, **settings)
    return encoder, lambda image: TF.to_tensor(image.resize((side, side)))


def dinov2():
    return small("vit_small_patch14_dinov2", 28, depth=3)


def swin():
    return small("swin_tiny_patch4_window7_224", 56, depths=(2, 2), num_heads=(3, 6),
                 embed_dim=24)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 10, 10)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.attention(x, x, x, need_weights=False)[0].mean(1)
"""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Four photographs of 40 x 30 pixels: not square, as an encoder's preprocessing must bear."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "mine.py").write_text(MINE)
    for k in range(4):
        picture = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        picture.resize((40, 30)).save(tmp_path / "photos" / f"{k}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return sorted((tmp_path / "photos").iterdir())


def run(encoder: str, *arguments: str) -> int:
    fixed = ["--data", "photos", "--device", "cpu", "--rank", "4", "--draws", "1"]
    fixed += ["--out", "scores.parquet"]
    return main(["score", *fixed, "--encoder", encoder, *arguments])


def by_hand(encoder: nn.Module, preprocess: object, photos: list[Path]) -> np.ndarray:
    from influence_ssl import LoGra

    images = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in photos])
    scorer = InfluenceScorer(encoder, Invariance(), LoGra(rank=4), progress=False)
    return scorer.score(images).values


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_efficientnet"])
def test_timm(photos: list[Path], capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run(f"timm:{name}") == 0
    output = capsys.readouterr().out
    assert "untrained: random weights from seed 0, because --weights was not given" in output
    torch.manual_seed(0)
    encoder = timm.create_model(name, num_classes=0)
    transform = create_transform(**resolve_model_data_config(encoder), is_training=False)
    found = Scores.load("scores.parquet")
    np.testing.assert_allclose(found.values, by_hand(encoder, transform, photos), rtol=1e-4)
    assert found.provenance["untrained"] is True


# ResNet; depth-wise convolutions with squeeze-excitation.
@pytest.mark.parametrize(
    ("name", "head"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")]
)
def test_torchvision(photos: list[Path], name: str, head: str) -> None:
    assert run(f"torchvision:{name}") == 0
    torch.manual_seed(0)
    encoder = models.get_model(name, weights=None)
    parent, _, own = head.rpartition(".")
    setattr(encoder.get_submodule(parent), own, nn.Identity())
    transform = models.get_model_weights(name).DEFAULT.transforms()
    expected = by_hand(encoder, transform, photos)
    np.testing.assert_allclose(Scores.load("scores.parquet").values, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["dinov2", "swin"])
def test_attention_whole_and_in_windows(photos: list[Path], name: str) -> None:
    assert run(f"mine.py:{name}") == 0
    found = Scores.load("scores.parquet")
    assert (found.values < 0).all()
    assert any("qkv" in layer for layer in found.provenance["layers"])


def test_what_an_architecture_hides_is_said(
    photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in photos:
        Image.open(path).resize((20, 20)).save(path)
    assert run("mine.py:Attention") == 0
    (line,) = re.findall("weights of 1 layers.*", capsys.readouterr().out)
    assert "attention.in_proj_weight" in line
    assert "attention.out_proj.weight" in line


@pytest.mark.parametrize(
    ("spec", "make", "head"),
    [
        ("timm:test_resnet", timm.create_model, "fc"),
        ("torchvision:mobilenet_v3_small", models.get_model, "classifier.3"),
    ],
)
def test_a_published_checkpoint_loses_its_classifier(
    photos: list[Path], spec: str, make: object, head: str
) -> None:
    torch.manual_seed(5)
    trained = make(spec.partition(":")[2])
    save_file(trained.state_dict(), "weights.safetensors")
    assert run(spec, "--weights", "weights.safetensors") == 0
    named = from_zoo(spec, False, 0)
    parent, _, own = head.rpartition(".")
    setattr(trained.get_submodule(parent), own, nn.Identity())
    expected = by_hand(trained, named.preprocess, photos)
    np.testing.assert_allclose(Scores.load("scores.parquet").values, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b_16", "squeezenet1_1", "densenet121"])
def test_torchvisions_heads_give_way_to_one_vector(name: str) -> None:
    named = from_zoo(f"torchvision:{name}", False, 0)
    with torch.inference_mode():
        z = named.module.eval()(torch.zeros(1, 3, 224, 224))
    assert z.ndim == 2
    assert z.shape[1] != 1000


def test_a_tag_names_the_preprocessing() -> None:
    first = from_zoo("torchvision:resnet50.IMAGENET1K_V1", False, 0).preprocess
    second = from_zoo("torchvision:resnet50.IMAGENET1K_V2", False, 0).preprocess
    assert (first.resize_size, second.resize_size) == ([256], [232])


@pytest.mark.parametrize(
    ("encoder", "arguments", "message"),
    [
        ("timm:resnet19", (), "timm has no such model; similar names: .*resnet18"),
        ("timm:resnet18.no_such_tag", (), "no such model"),
        ("torchvision:resnet19", (), "torchvision has no such model; similar names: .*resnet18"),
        ("torchvision:resnet18.V9", (), "similar names: .*IMAGENET1K_V1"),
        ("torchvision:fasterrcnn_resnet50_fpn", (), "no such model"),
        ("mine.py:swin", ("--weights", "pretrained"), "pretrained requires timm:NAME"),
        ("builtin:cifar-simclr", ("--weights", "a.pt"), "has its own weights; leave it out"),
    ],
)
def test_bad_names_are_one_line(
    photos: list[Path],
    capsys: pytest.CaptureFixture[str],
    encoder: str,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert run(encoder, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


@pytest.mark.parametrize("encoder", ["timm:resnet18.a1_in1k", "torchvision:resnet18"])
def test_pretrained_weights_without_a_network_are_one_line(
    photos: list[Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    encoder: str,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refused)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)
    assert run(encoder, "--weights", "pretrained") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not in the local cache and cannot be downloaded" in line
