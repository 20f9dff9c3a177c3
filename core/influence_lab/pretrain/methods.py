"""One module per method: an encoder with the method's head, and its loss on two views."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_lab.pretrain.losses import barlow_twins, byol_regression, nt_xent
from influence_lab.pretrain.processes import gather
from influence_lab.pretrain.resnets import STEMS, CifarResNet18
from influence_lab.pretrain.settings import Settings


def _head(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with batch normalisation and ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class Method(nn.Module, ABC):
    """The trained module. ``views`` is the number of views per image that ``loss`` takes.

    ``called``: the networks that ``loss`` calls as they are.

    If several processes share a batch, each receives its part, and the mean of their losses is the
    loss of the whole batch.
    """

    views = 2
    called: tuple[str, ...] = ("online",)

    def __init__(self, settings: Settings, num_classes: int | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.encoder: CifarResNet18 = STEMS[settings.stem](settings.width, num_classes)

    @abstractmethod
    def loss(self, views: list[Tensor], labels: Tensor) -> Tensor:
        """The loss of one batch; every view is (B, 3, H, W)."""

    def after_step(self, tau: float) -> None:
        """Work after the optimiser's step; ``tau`` is the momentum of the target network."""

    def compile_networks(self, backend: str) -> None:
        """Have ``torch.compile`` take each network that a step calls; names of weights stay."""
        called = [self._modules[name] for name in self.called]
        for network in called:
            assert network is not None
            network.compile(backend=backend)

    def _two(self, module: nn.Module, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        # One pass over both views: their statistics in batch normalisation are shared.
        a, b = module(torch.cat(views)).float().chunk(2)
        return a, b


class SimCLR(Method):
    """Chen et al. 2020: a projection of two layers, the loss :func:`..losses.nt_xent`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        sizes = (self.encoder.num_features, settings.hidden, settings.output)
        self.projector = _head(sizes)
        self.online = nn.Sequential(self.encoder, self.projector)

    def loss(self, views: list[Tensor], labels: Tensor) -> Tensor:
        """NT-Xent of the two projections of the whole batch."""
        a, b = self._two(self.online, views)
        return nt_xent(gather(a), gather(b), self.settings.temperature)


class BarlowTwins(Method):
    """Zbontar et al. 2021: a projection of three layers, :func:`..losses.barlow_twins`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        hidden = settings.hidden
        self.projector = _head((self.encoder.num_features, hidden, hidden, settings.output))
        self.online = nn.Sequential(self.encoder, self.projector)

    def loss(self, views: list[Tensor], labels: Tensor) -> Tensor:
        """``loss_scale`` times Barlow Twins' loss of the whole batch's two projections."""
        a, b = self._two(self.online, views)
        loss = barlow_twins(gather(a), gather(b), self.settings.off_diagonal)
        return self.settings.loss_scale * loss


class BYOL(Method):
    """Grill et al. 2020: a predictor on one network, and a target network that follows slowly."""

    called = ("online", "predictor", "target")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        sizes = (self.encoder.num_features, settings.hidden, settings.output)
        self.projector = _head(sizes)
        self.online = nn.Sequential(self.encoder, self.projector)
        self.predictor = _head((settings.output, settings.hidden, settings.output))
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def loss(self, views: list[Tensor], labels: Tensor) -> Tensor:
        """Each view predicts the target network's projection of the other."""
        p, q = self._two(nn.Sequential(self.online, self.predictor), views)
        with torch.no_grad():
            a, b = self._two(self.target, views)
        return byol_regression(p, b) + byol_regression(q, a)

    @torch.no_grad()
    def after_step(self, tau: float) -> None:
        """target ← τ target + (1 − τ) online, weights only."""
        pairs = zip(self.target.parameters(), self.online.parameters(), strict=True)
        for target, online in pairs:
            target.lerp_(online, 1 - tau)


class Supervised(Method):
    """Cross-entropy of a linear layer on the representation, one view per image."""

    views = 1
    called = ("encoder",)

    def __init__(self, settings: Settings, num_classes: int) -> None:
        super().__init__(settings, num_classes)

    def loss(self, views: list[Tensor], labels: Tensor) -> Tensor:
        """Cross-entropy; ``views`` has one entry."""
        logits = self.encoder(views[0]).float()
        return F.cross_entropy(logits, labels)


def build(settings: Settings, num_classes: int, seed: int) -> Method:
    """The method of ``settings`` with weights determined by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.method == "supervised":
            return Supervised(settings, num_classes)
        kinds: dict[str, Callable[[Settings], Method]]
        kinds = {"simclr": SimCLR, "byol": BYOL, "barlow": BarlowTwins}
        return kinds[settings.method](settings)
