"""What gradients depend on, and a folder that keeps them.

Weights, settings and code can all change between two runs. :func:`origin` names what can be read
off: weights, buffers and settings. Other changes, for instance to ``forward``, show in the
gradients of two examples, which a :class:`Probe` keeps and compares.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from influence_ssl._gradients import Capture
from influence_ssl._state import state_of
from influence_ssl.errors import InfluenceOSError, InfluenceValueError
from influence_ssl.files.writing import replacing
from influence_ssl.objectives import Batch, Index
from influence_ssl.version import __version__

Columns = dict[str, Tensor]

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_PROBE = "probe.safetensors"
_CHECKSUM = "crc32"
# What reading foreign bytes as tensors and JSON raises.
_DAMAGED = SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError
ENCODER = "the encoder or its weights"


def fingerprint(encoder: nn.Module) -> str:
    """SHA-256 of an encoder's module types, parameters and buffers, by name."""
    found = hashlib.sha256()
    for name, module in encoder.named_modules():
        found.update(f"{name} {type(module).__module__}.{type(module).__qualname__}\n".encode())
    for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Read as bytes: NumPy knows no bfloat16.
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(content.numpy().tobytes())
    return found.hexdigest()


def origin(encoder: nn.Module, capture: Capture) -> dict[str, str]:
    """What the gradients of ``capture`` depend on, as far as it can be named, part by part."""
    objective = capture.objective
    shapes = [(x.name, x.out_features, x.in_features, *x.shape) for x in capture.layers]
    return {
        ENCODER: fingerprint(encoder),
        "objective": repr(objective) if _plain(objective) else state_of(objective),
        "seed": str(capture.seed),
        "dtype": str(capture.dtype),
        "layers or rank": repr(shapes),
        "the version of influence_ssl": __version__,
    }


def _plain(value: Any) -> bool:
    """Whether ``repr`` is complete, as for frozen data classes of numbers and texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        frozen = value.__dataclass_params__.frozen  # type: ignore[attr-defined]
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return frozen and not set(vars(value)) - set(value.__dataclass_fields__) and _plain(fields)
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


@dataclass(frozen=True)
class Probe:
    """Two examples and their projected gradients (B, k), in float64 if the encoder allows it."""

    batch: Batch
    index: Index
    gradients: Tensor

    @classmethod
    def take(cls, capture: Capture, batch: Batch, index: Index) -> Probe:
        """The probe of these examples."""
        return cls(tuple(part.cpu() for part in batch), index, _gradients(capture, batch, index))

    def agrees(self, capture: Capture) -> bool:
        """Whether ``capture`` still yields these gradients, up to rounding."""
        found = _gradients(capture, self.batch, self.index)
        if found.shape != self.gradients.shape:
            return False
        tolerance = _TOLERANCE.get(capture.dtype, 5e-2)
        return bool((found - self.gradients).norm() <= tolerance * self.gradients.norm() + 1e-30)


def _gradients(capture: Capture, batch: Batch, index: Index) -> Tensor:
    return capture.flat(batch, index, 0).detach().cpu()


class Store:
    """A folder of projected gradients of one encoder under one set of settings.

    Opening it raises :class:`InfluenceValueError` if it holds any other gradients.
    """

    def __init__(
        self, folder: Path, parts: dict[str, str], capture: Capture, batch: Batch, index: Index
    ) -> None:
        self.folder = folder
        path = folder / _PROBE
        # Looked for before the probe: another process may write both meanwhile, the probe first.
        arrays = any(file.name != _PROBE for file in folder.glob("[!.]*.safetensors"))
        if not path.exists():
            if arrays:
                raise InfluenceValueError(
                    f"store {str(folder)!r} holds arrays but no {_PROBE}, so the origin of their "
                    "gradients is unknown; give another folder."
                )
            self._begin(path, parts, Probe.take(capture, batch, index))
            return
        known, probe = _read(path)
        changed = [name for name, part in parts.items() if known.get(name) != part]
        if not changed and not probe.agrees(capture):
            changed = ["objective, perturbation, projection or forward pass"]
        if changed:
            raise InfluenceValueError(
                f"store {str(folder)!r} holds gradients from a run that differed in "
                f"{', '.join(changed)}; give another folder, or remove this one."
            )

    @staticmethod
    def name(draw: int, start: int, batch: Batch, index: Index) -> str:
        """The name of a batch's file, which its content decides."""
        return f"{draw}-{start}-{state_of((batch, index))[:32]}.safetensors"

    def find(self, name: str, needed: set[str]) -> Columns | None:
        """One batch's columns, if its file is there, undamaged, and has all ``needed``."""
        path = self.folder / name
        if path.exists():
            with suppress(*_DAMAGED):  # a damaged file is made again
                found, _ = _tensors(path)
                if needed <= found.keys():
                    return found
        return None

    def keep(self, name: str, columns: Columns) -> None:
        """Write one batch's columns."""
        _write(self.folder / name, columns)

    def _begin(self, path: Path, parts: dict[str, str], probe: Probe) -> None:
        tensors = {f"batch {number}": part for number, part in enumerate(probe.batch)}
        tensors |= {"index": probe.index, "gradients": probe.gradients}
        _write(path, tensors, {"parts": json.dumps(parts)})


def _write(path: Path, tensors: Columns, metadata: dict[str, str] | None = None) -> None:
    tensors = {name: x.cpu().contiguous() for name, x in tensors.items()}
    content = save(tensors, {**(metadata or {}), _CHECKSUM: _checksum(tensors)})
    with replacing(path, parents=True) as temporary:
        # Not by safetensors, which does not tell a full disk from any other error.
        temporary.write_bytes(content)


def _checksum(tensors: Columns) -> str:
    """CRC-32 of names, types, shapes and values: faster than a disk, and enough against damage."""
    found = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), found)
        found = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def _tensors(path: Path) -> tuple[Columns, dict[str, str]]:
    """The tensors and words that :func:`_write` wrote; one of :data:`_DAMAGED` for any others."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        words = file.metadata() or {}
    if words.get(_CHECKSUM) != _checksum(tensors):
        raise ValueError("its content does not fit its checksum")
    return tensors, words


def _read(path: Path) -> tuple[dict[str, str], Probe]:
    try:
        tensors, words = _tensors(path)
        parts = json.loads(words["parts"])
        columns = sorted(name for name in tensors if name.startswith("batch "))
        batch = tuple(tensors[name] for name in columns)
        return parts, Probe(batch, tensors["index"], tensors["gradients"])
    except _DAMAGED as error:
        raise InfluenceOSError(
            f"{str(path)!r} is damaged; remove the folder and start again."
        ) from error
