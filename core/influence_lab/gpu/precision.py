"""In what the card computes: bfloat16, or float32 with and without TF32's short products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """The type of weights and images, and whether float32 products may be rounded to TF32."""

    dtype: torch.dtype
    tf32: bool


PRECISIONS = {
    "bfloat16": Precision(torch.bfloat16, False),
    "TF32": Precision(torch.float32, True),
    "float32": Precision(torch.float32, False),
}


@contextmanager
def computing(precision: Precision) -> Iterator[None]:
    """Products and convolutions in float32 with TF32 or without, and as before at the end.

    PyTorch's own default allows TF32 in convolutions and not in products.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = precision.tf32
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
