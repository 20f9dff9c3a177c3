"""Encoders: ResNet-18 of any width for small and large images, with preprocessing.

The functions that return ``(encoder, preprocess)`` serve ``influence-ssl score --encoder
influence_lab.pretrain.resnets:NAME``; the weights come from ``--weights`` (a
``state_dict``, a safetensors file or a checkpoint of solo-learn,
:func:`influence_ssl.encoders.loading.load_encoder`) or from the tracked slim encoders
(:mod:`influence_lab.records.results`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from influence_ssl.encoders.resnet import CIFAR10_MEAN, CIFAR10_STD, CifarResNet18
from influence_ssl.errors import InfluenceTypeError

# solo-learn's means and deviations (MEANS_N_STD in its pretrain_dataloader.py).
SOLO = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

Preprocess = Callable[[object], Tensor]


class LargeResNet18(CifarResNet18):
    """torchvision's ResNet-18, for larger images: a 7 x 7 stem of stride 2 and a max-pool."""

    STEM = (7, 2, 3)

    def stem(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b w i j"]:
        """The input of the four stages, at a quarter of the image's width."""
        return F.max_pool2d(super().stem(x), 3, 2, 1)


class SoloResNet18(CifarResNet18):
    """solo-learn's variant for CIFAR, with a stem padded by 2 and maps 34 pixels wide.

    A checkpoint does not reveal this: the weights have the same shapes but yield other
    representations.
    """

    STEM = (3, 1, 2)


STEMS = {"cifar": CifarResNet18, "large": LargeResNet18}


def representation(encoder: CifarResNet18) -> CifarResNet18:
    """The same weights without the classifier; ``encoder`` itself if it has none."""
    if encoder.fc is None:
        return encoder
    bare = type(encoder)(encoder.width)
    state = {k: v for k, v in encoder.state_dict().items() if not k.startswith("fc.")}
    bare.load_state_dict(state)
    return bare.train(encoder.training).to(encoder.conv1.weight)


def cifar_resnet18(width: int = 64, num_classes: int | None = None) -> CifarResNet18:
    """A :class:`CifarResNet18`, freshly initialised from torch's global generator."""
    return CifarResNet18(width, num_classes)


def normalise(
    images: Tensor, mean: Sequence[float] = CIFAR10_MEAN, std: Sequence[float] = CIFAR10_STD
) -> Tensor:
    """uint8 images (..., 3, H, W) to float32: (x / 255 − mean) / std, both CIFAR-10's.

    Raises :class:`InfluenceTypeError` for any other type, whose range is unknown.
    """
    if images.dtype != torch.uint8:
        raise InfluenceTypeError(
            f"normalise: images are {images.dtype}, whose range is not known; give uint8, for "
            "values in [0, 1] (255 * images).round().byte()."
        )
    return standardise(images, mean, std)


def standardise(
    pixels: Tensor, mean: Sequence[float] = CIFAR10_MEAN, std: Sequence[float] = CIFAR10_STD
) -> Tensor:
    """:func:`normalise` for pixels of any type that run from 0 to 255, as augmented images do."""
    centre = torch.tensor(mean, device=pixels.device).view(3, 1, 1)
    scale = torch.tensor(std, device=pixels.device).view(3, 1, 1)
    return (pixels.float() / 255 - centre) / scale


def cifar_preprocess(image: object) -> Float[Tensor, "3 h w"]:
    """A PIL RGB image to the normalised float32 tensor that the encoder receives."""
    return normalise(_pixels(image))


def _pixels(image: object) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def cifar_slim() -> tuple[nn.Module, Preprocess]:
    """The encoder of profile ``cpu``: width 16, 128 features, 0.7 million parameters."""
    return cifar_resnet18(16), cifar_preprocess


def cifar_full() -> tuple[nn.Module, Preprocess]:
    """The paper's encoder: width 64, 512 features, 11 million parameters."""
    return cifar_resnet18(64), cifar_preprocess


def cifar_slim_classifier() -> tuple[nn.Module, Preprocess]:
    """:func:`cifar_slim` with a linear layer to ten classes, for ``Supervised``."""
    return cifar_resnet18(16, num_classes=10), cifar_preprocess


def solo_cifar10() -> tuple[nn.Module, Preprocess]:
    """solo-learn's ResNet-18 for CIFAR-10, for its checkpoints: ``--weights FILE.ckpt``."""
    mean, std = SOLO["cifar10"]
    return SoloResNet18(), lambda image: normalise(_pixels(image), mean, std)


def solo_cifar100() -> tuple[nn.Module, Preprocess]:
    """:func:`solo_cifar10` with the mean and deviation of CIFAR-100."""
    mean, std = SOLO["cifar100"]
    return SoloResNet18(), lambda image: normalise(_pixels(image), mean, std)
