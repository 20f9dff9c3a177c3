"""What gradients depend on, and a folder that keeps them.

Weights, settings and code can all change between two runs. :func:`origin` and :func:`variables`
name what can be read off: weights, buffers, settings, attributes, code and its data. Other changes,
for instance by a hook, show in the gradients of two examples, which a :class:`Probe` keeps and
compares.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from influence_ssl._gradients import Capture
from influence_ssl._state import State, forward_code, installed, name_of, state_of
from influence_ssl.errors import InfluenceOSError, InfluenceValueError
from influence_ssl.files.writing import replacing
from influence_ssl.objectives import Batch, Index, Objective
from influence_ssl.version import __version__

Columns = dict[str, Tensor]

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_PROBE = "probe.safetensors"
_CHECKSUM = "crc32"
# What reading foreign bytes as tensors and JSON raises.
_DAMAGED = SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError
ENCODER, OBJECTIVE = "the encoder or its weights", "objective"
_FIXED = (
    ENCODER, OBJECTIVE, "seed", "dtype", "layers or rank", "the version of influence_ssl",
)  # fmt: skip
_OBJECTIVE_S = "the objective's "
# Modes, hooks and weights, and where an encoder was compiled or distributed to.
_LEFT_OUT = {*vars(nn.Module()), "_compiled_call_impl", "device_ids", "output_device"}
_changing: set[str] = set()  # variables that a run in this process changed


def fingerprint(encoder: nn.Module) -> str:
    """SHA-256 of an encoder's module types, parameters and buffers, and its own forward's code."""
    found, state = hashlib.sha256(), State(known=_registered(encoder), encoder=True)
    for name, module in encoder.named_modules():
        found.update(f"{name} {name_of(type(module))}\n".encode())
    for name, code in forward_code(encoder)[0]:
        found.update(f"{name} {state.attempt(code)}\n".encode())
    for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Read as bytes: NumPy knows no bfloat16.
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(content.numpy().tobytes())
    return found.hexdigest()


def origin(encoder: nn.Module, capture: Capture) -> dict[str, str]:
    """What the gradients of ``capture`` depend on, as far as it can be named, part by part.

    :func:`variables` are parts as well, but for those that a run changes.
    """
    shapes = [(x.name, x.out_features, x.in_features, *x.shape) for x in capture.layers]
    objective = State(known=_registered(encoder)).attempt(capture.objective)
    parts = objective, str(capture.seed), str(capture.dtype), repr(shapes)
    return dict(zip(_FIXED, (fingerprint(encoder), *parts, __version__), strict=True))


def variables(encoder: nn.Module, objective: Objective) -> dict[str, str]:
    """The encoder's attributes, and the data that its code and the objective name."""
    known = _registered(encoder)
    ours, theirs = State(known=known, encoder=True), State(known=known)
    code, names = forward_code(encoder)
    found = {}
    for _, function in code:
        ours.attempt(function)
    for place, module in encoder.named_modules():
        kinds = [kind for kind in type(module).__mro__ if not installed(kind.__module__)]
        for name, value in vars(module).items():
            if name not in _LEFT_OUT and (name in names if kinds else _is_number(value)):
                path = f"{place}.{name}".removeprefix(".")
                words = f"the encoder's attribute {path!r} ({type(module).__qualname__})"
                found[words] = ours.attempt(value)
        for kind in kinds:
            ours.attributes_of(kind, names)
    theirs.attempt(objective)
    found |= {f"the encoder's {name}": part for name, part in ours.data.items()}
    return found | {f"{_OBJECTIVE_S}{name}": part for name, part in theirs.data.items()}


def settings_of(scorer: Any, names: Iterable[str]) -> dict[str, str]:
    """The settings of these names and the data that they hold, but for what running changes."""
    found = {}
    for name in names:
        state = State(id, _registered(scorer.encoder))
        found[name] = state.attempt(getattr(scorer, name))
        found |= {f"the {name}'s {part}": words for part, words in state.data.items()}
    return steady(found, found)


def is_same(one: object, other: object) -> bool:
    """Whether two objects agree in all that they hold; ``==`` may be undefined, as of tensors."""
    return one is other or state_of(one, id) == state_of(other, id)


def _registered(encoder: nn.Module) -> list[tuple[Any, str]]:
    """An encoder's modules and tensors, whose names say enough where something else holds them."""
    tensors = *encoder.named_parameters(), *encoder.named_buffers()
    return [(part, name) for name, part in (*encoder.named_modules(), *tensors)]


def steady(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """The :func:`variables` after a run, without those that a run was ever seen to change.

    Caches and counters are such variables. Their values say nothing about a gradient.
    """
    names = before.keys() | after.keys()
    _changing.update(name for name in names if before.get(name) != after.get(name))
    return {name: part for name, part in after.items() if name not in _changing}


def differing(now: dict[str, str], then: dict[str, str], objective: bool = True) -> list[str]:
    """The parts of two runs that differ; ``objective``: whether that counts.

    A variable that one of them does not name is one that running changes.
    """
    return [
        name
        for name, part in now.items()
        if (objective or not (name == OBJECTIVE or name.startswith(_OBJECTIVE_S)))
        and then.get(name, None if name in _FIXED else part) != part
    ]


def _is_number(value: Any) -> bool:
    """Whether it is numbers; a library's texts may name where weights came from."""
    if isinstance(value, list | tuple):
        return all(map(_is_number, value))
    return isinstance(value, bool | int | float)


@dataclass(frozen=True)
class Probe:
    """Two examples and their projected gradients, in float64 if the encoder allows it.

    The gradients are (draws·B, k), those of one draw before those of the next.
    """

    batch: Batch
    index: Index
    gradients: Tensor

    @classmethod
    def take(cls, capture: Capture, batch: Batch, index: Index, draws: int) -> Probe:
        """The probe of these examples."""
        found = _gradients(capture, batch, index, range(draws))
        return cls(tuple(part.cpu() for part in batch), index, found)

    def agrees(self, capture: Capture) -> bool:
        """Whether ``capture`` still yields these gradients, up to rounding."""
        b = len(self.index)
        for draw in range(len(self.gradients) // b):
            known = self.gradients[draw * b : (draw + 1) * b]
            found = _gradients(capture, self.batch, self.index, [draw])
            if found.shape != known.shape:
                return False
            tolerance = _TOLERANCE.get(capture.dtype, 5e-2)
            if not (found - known).norm() <= tolerance * known.norm() + 1e-30:
                return False
        return True


def _gradients(capture: Capture, batch: Batch, index: Index, draws: Iterable[int]) -> Tensor:
    return torch.cat([capture.flat(batch, index, draw).detach().cpu() for draw in draws])


class Store:
    """A folder of projected gradients of one encoder under one set of settings.

    Opening it raises :class:`InfluenceValueError` if it holds any other gradients.
    """

    def __init__(
        self,
        folder: Path,
        parts: dict[str, str],
        capture: Capture,
        batch: Batch,
        index: Index,
        draws: int,
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
            self._begin(path, parts, Probe.take(capture, batch, index, draws))
            return
        known, probe = _read(path)
        changed = differing(parts, known)
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
        count = sum(name.startswith("batch ") for name in tensors)
        batch = tuple(tensors[f"batch {number}"] for number in range(count))
        return parts, Probe(batch, tensors["index"], tensors["gradients"])
    except _DAMAGED as error:
        raise InfluenceOSError(
            f"{str(path)!r} is damaged; remove the folder and start again."
        ) from error
