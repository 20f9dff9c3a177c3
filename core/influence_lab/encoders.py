"""Encoders: the ResNet-18 for 32 x 32 images, of any width, and how images are prepared for it.

The functions that return ``(encoder, preprocess)`` are what ``influence-ssl score --encoder
influence_lab.encoders:NAME`` asks for; the weights come from ``--weights`` or from the tracked
slim encoders (:mod:`influence_lab.results`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

Preprocess = Callable[[object], Tensor]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016, Figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(out)).add_(shortcut))


class CifarResNet18(nn.Module):
    """ResNet-18 with a 3 x 3 stem of stride 1 and no max-pool: (B, 3, H, W) -> (B, 8 * width).

    With ``num_classes`` a linear layer ``fc`` follows and the output is (B, num_classes). The
    parameter names are those of torchvision's ``resnet18``, which solo-learn's checkpoints share.
    """

    def __init__(self, width: int = 64, num_classes: int | None = None) -> None:
        super().__init__()
        self.width = width
        self.num_features = 8 * width
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.fc = None if num_classes is None else nn.Linear(self.num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))

    def features(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The representation: the last stage's activations averaged over positions."""
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The representation, or the logits where there is a classifier."""
        z = self.features(x)
        return z if self.fc is None else self.fc(z)


def representation(encoder: CifarResNet18) -> CifarResNet18:
    """The same weights without the classifier; ``encoder`` itself where it has none."""
    if encoder.fc is None:
        return encoder
    bare = CifarResNet18(encoder.width)
    state = {k: v for k, v in encoder.state_dict().items() if not k.startswith("fc.")}
    bare.load_state_dict(state)
    return bare.train(encoder.training).to(encoder.conv1.weight)


def cifar_resnet18(width: int = 64, num_classes: int | None = None) -> CifarResNet18:
    """A :class:`CifarResNet18`, freshly initialised from torch's global generator."""
    return CifarResNet18(width, num_classes)


def normalise(images: Tensor) -> Tensor:
    """uint8 images (..., 3, H, W) to float32: (x / 255 − mean) / std, both CIFAR-10's."""
    mean = torch.tensor(CIFAR10_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(CIFAR10_STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def cifar_preprocess(image: object) -> Float[Tensor, "3 h w"]:
    """A PIL RGB image to the normalised float32 tensor that the encoder receives."""
    pixels = np.array(image, dtype=np.uint8)
    return normalise(torch.from_numpy(pixels).permute(2, 0, 1))


def cifar_slim() -> tuple[nn.Module, Preprocess]:
    """The encoder of profile ``cpu``: width 16, 128 features, 0.7 million parameters."""
    return cifar_resnet18(16), cifar_preprocess


def cifar_full() -> tuple[nn.Module, Preprocess]:
    """The paper's encoder: width 64, 512 features, 11 million parameters."""
    return cifar_resnet18(64), cifar_preprocess


def cifar_slim_classifier() -> tuple[nn.Module, Preprocess]:
    """:func:`cifar_slim` with a linear layer to ten classes, for ``Supervised``."""
    return cifar_resnet18(16, num_classes=10), cifar_preprocess
