"""The encoder that comes with the package, for users who have none at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_ssl.encoders.resnet import CIFAR10_MEAN, CIFAR10_STD, CifarResNet18
from influence_ssl.errors import InfluenceValueError

if TYPE_CHECKING:
    from PIL import Image

PREFIX = "builtin:"
NAME = "cifar-simclr"
WEIGHTS = Path(__file__).with_name("cifar_simclr.safetensors")
LIMITS = (
    "builtin:cifar-simclr sees every image at 32 x 32 pixels and was trained only on photographs "
    "of CIFAR-10; an encoder trained on your kind of images is more informative"
)
_SIDE = 32


def from_package(spec: str) -> tuple[CifarResNet18, Callable[[Image.Image], Tensor]] | None:
    """The encoder behind ``builtin:cifar-simclr`` and its preprocessing; ``None`` for other specs.

    A ResNet-18 of width 16, (B, 3, 32, 32) -> (B, 128), trained with SimCLR on CIFAR-10 without
    labels and stored in float16. Images of any size are resized to 32 x 32.
    """
    if not spec.startswith(PREFIX):
        return None
    if spec != PREFIX + NAME:
        raise InfluenceValueError(
            f"--encoder {spec!r}: the only built-in encoder is {PREFIX}{NAME}."
        )
    state = load_file(WEIGHTS)
    encoder = CifarResNet18(len(state["conv1.weight"]))
    encoder.load_state_dict(state)
    return encoder.eval(), _preprocess


def _preprocess(image: Image.Image) -> Tensor:
    from PIL.Image import Resampling

    if image.size != (_SIDE, _SIDE):
        image = image.resize((_SIDE, _SIDE), Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (CIFAR10_MEAN, CIFAR10_STD))
    return (pixels - mean) / std
