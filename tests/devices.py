"""A device without values: each question to it is counted and answered."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ANSWERS = {torch.bool: True, torch.int32: 0, torch.int64: 0}


class Asked(TorchDispatchMode):
    """Counts the questions to a device and answers them; notes where its tensors meet others."""

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.counts: Counter[str] = Counter()
        self.mixed: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        away = [x for x in tensors if x.device.type == self.device]
        if not away:
            return function(*args, **kwargs)
        if name not in ("_to_copy", "copy_") and any(
            x.device.type == "cpu" and x.ndim for x in tensors
        ):
            self.mixed.append(name)
        if name == "_to_copy" and torch.device(kwargs.get("device") or self.device).type == "cpu":
            self.counts[name] += 1
            return torch.ones(away[0].shape, dtype=kwargs.get("dtype") or away[0].dtype)
        if name == "index" and any(x.dtype == torch.bool for x in away):  # a mask: how many rows?
            self.counts[name] += 1
            return args[0]
        if name not in ("_local_scalar_dense", "nonzero", "equal"):
            return function(*args, **kwargs)
        self.counts[name] += 1
        if name == "_local_scalar_dense":
            return ANSWERS.get(away[0].dtype, 1.0)
        empty = torch.zeros(0, away[0].ndim, dtype=torch.long, device=self.device)
        return empty if name == "nonzero" else True
