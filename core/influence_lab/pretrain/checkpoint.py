"""The state of a training on disk, written whole or not at all and read without running code."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from influence_lab.pretrain.methods import Method
from influence_lab.pretrain.resnets import CifarResNet18
from influence_lab.pretrain.settings import Augmentation, Settings
from influence_ssl.errors import InfluenceOSError, InfluenceValueError
from influence_ssl.files.writing import replacing


@dataclass
class Run:
    """A training in progress or finished: the method and one record per finished epoch."""

    folder: Path
    settings: Settings
    seed: int
    method: Method
    epochs: list[dict[str, float]]

    @property
    def encoder(self) -> CifarResNet18:
        """The encoder that the method trains and other code uses."""
        return self.method.encoder

    @property
    def done(self) -> bool:
        """Whether all epochs are done."""
        return len(self.epochs) == self.settings.epochs


@dataclass
class Place:
    """The position within an epoch: steps done, their summed loss and their seconds.

    ``generator`` is the state from which the next step draws, on a ``device`` of this type;
    ``None`` at an epoch's beginning.
    """

    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    generator: Tensor | None = None
    device: str = "cpu"


def save(run: Run, optimiser: torch.optim.Optimizer, digest: str, place: Place) -> None:
    """Replace ``checkpoint.pt`` and ``curves.json``, unless the weights are no longer finite."""
    if not all(torch.isfinite(p).all() for p in run.method.parameters()):
        raise diverged(run)
    state = {
        "settings": asdict(run.settings),
        "seed": run.seed,
        "data": digest,
        "method": run.method.state_dict(),
        "optimiser": optimiser.state_dict(),
        "epochs": run.epochs,
        "place": vars(place),
    }
    with replacing(run.folder / "checkpoint.pt", parents=True) as path:
        torch.save(state, path)
    with replacing(run.folder / "curves.json", parents=True) as path:
        path.write_text(json.dumps(run.epochs, indent=1))


def diverged(run: Run) -> InfluenceValueError:
    """The error for a training whose loss or weights are infinite or NaN."""
    return InfluenceValueError(
        f"{run.settings.method}, epoch {len(run.epochs) + 1}: the loss is not finite; lower the "
        f"learning rate ({run.settings.lr}); the last checkpoint is kept"
    )


def resume(run: Run, optimiser: torch.optim.Optimizer, device: torch.device, digest: str) -> Place:
    """Fill ``run`` and ``optimiser`` from ``run.folder`` if there is a checkpoint of the same run.

    ``bf16`` and, between two epochs, the device may differ: what was computed in is recorded epoch
    by epoch.
    """
    path = run.folder / "checkpoint.pt"
    if not path.exists():
        return Place()
    state = read_checkpoint(path, device)
    expected = {"settings": _comparable(asdict(run.settings)), "seed": run.seed, "data": digest}
    try:
        found = {**state, "settings": _comparable(state["settings"])}
        other = [name for name, value in expected.items() if found[name] != value]
        if not other:
            run.method.load_state_dict(state["method"])
            optimiser.load_state_dict(state["optimiser"])
        place = Place(**state.get("place", {}))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InfluenceValueError(
            f"{path}: does not fit this training ({type(error).__name__}: {reason}); move the "
            "folder away to begin anew"
        ) from error
    if other:
        raise InfluenceValueError(
            f"{path}: made with other {other[0]} than asked for; move the folder away to begin anew"
        )
    if place.generator is not None and place.device != device.type:
        raise InfluenceValueError(
            f"{path}: was interrupted within an epoch on {place.device}, whose random numbers "
            f"{device.type} does not have; finish the epoch there, or move the folder away"
        )
    run.epochs.extend(state["epochs"])
    return place


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    # A setting that is newer than a checkpoint has its default there.
    views = {**asdict(Augmentation()), **settings["augmentation"]}
    given = {**settings, "augmentation": views, "bf16": None}
    defaults = asdict(Settings("", "", 0, 0, 0, 0, 0, 0))
    return {**defaults, **given}


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A run's checkpoint, read without running any code in it."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise InfluenceOSError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        # torch.load raises many kinds of error for a file that is not a checkpoint.
        raise InfluenceValueError(
            f"{path}: not a checkpoint of this trainer ({type(error).__name__}); "
            "move it away to begin anew"
        ) from error
    keys = ("settings", "seed", "data", "method", "optimiser", "epochs")
    missing = [key for key in keys if not isinstance(state, dict) or key not in state]
    if missing:
        raise InfluenceValueError(
            f"{path}: not a checkpoint of this trainer (no {missing[0]!r} in it); "
            "move it away to begin anew"
        )
    return state
