"""ResNet-18 of any width for small images, the architecture of the built-in encoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


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

    # Kernel, stride and padding of the first convolution.
    STEM = (3, 1, 1)

    def __init__(self, width: int = 64, num_classes: int | None = None) -> None:
        super().__init__()
        self.width = width
        self.num_features = 8 * width
        self.conv1 = nn.Conv2d(3, width, *self.STEM, bias=False)
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

    def stem(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b w i j"]:
        """The input of the four stages."""
        return torch.relu_(self.bn1(self.conv1(x)))

    def features(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The representation: the last stage's activations averaged over positions."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return x.mean((2, 3))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The representation, or the logits if there is a classifier."""
        z = self.features(x)
        return z if self.fc is None else self.fc(z)
