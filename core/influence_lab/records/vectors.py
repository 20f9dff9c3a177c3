"""Score vectors of one set of images, by name, in one small file that grows vector by vector.

The file is the record and lets an interrupted experiment resume. A vector takes about 7 kB
for 5,000 images: the logarithm of each magnitude is rounded to one of :data:`LEVELS` steps between
the vector's smallest and largest, which moves no value by more than some tenths of a percent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, UInt16

from influence_ssl.errors import InfluenceValueError
from influence_ssl.files.writing import replacing

LEVELS = 4095


class Vectors:
    """Named vectors (n,) of magnitudes ≥ 0, and what they have in common.

    ``origin`` (data, encoder, subset: JSON values) is written with the first vector. A file with
    another origin raises an :class:`InfluenceValueError`, because its vectors belong to something
    else.
    """

    def __init__(self, path: Path, origin: dict[str, Any] | None = None) -> None:
        self.path = path
        self.origin = origin
        self.notes: dict[str, dict[str, Any]] = {}
        self._codes: list[UInt16[np.ndarray, " n"]] = []
        self._ends: list[tuple[float, float]] = []
        if path.is_file():
            self._read()

    def _read(self) -> None:
        with np.load(self.path, allow_pickle=False) as file:
            written = json.loads(str(file["written"]))
            self._codes, self._ends = list(file["codes"]), [tuple(e) for e in file["ends"]]
        if self.origin is not None and self.origin != written["origin"]:
            other = [k for k, v in self.origin.items() if written["origin"].get(k) != v]
            raise InfluenceValueError(
                f"{self.path}: was made from another {' and '.join(other)}; remove the file to "
                "score again"
            )
        self.origin, self.notes = written["origin"], written["vectors"]

    def __contains__(self, name: str) -> bool:
        return name in self.notes

    def __getitem__(self, name: str) -> Float64[np.ndarray, " n"]:
        """The magnitudes; zeros are restored exactly."""
        place = list(self.notes).index(name)
        low, high = self._ends[place]
        codes = self._codes[place]
        return np.where(codes == 0, 0.0, np.exp(low + (codes - 1.0) * (high - low) / (LEVELS - 1)))

    def add(self, name: str, magnitude: Float[np.ndarray, " n"], **note: Any) -> None:
        """Add or replace a vector, with a note, and write the file."""
        if not (np.isfinite(magnitude).all() and (magnitude >= 0).all()):
            raise InfluenceValueError(f"{self.path}: {name}: not all values are finite and ≥ 0")
        positive = magnitude > 0
        logs = np.log(magnitude[positive])
        low, high = (float(logs.min()), float(logs.max())) if positive.any() else (0.0, 0.0)
        codes = np.zeros(len(magnitude), np.uint16)
        scale = (LEVELS - 1) / (high - low) if high > low else 0.0
        codes[positive] = 1 + np.rint((logs - low) * scale)
        if name in self.notes:
            place = list(self.notes).index(name)
            self._codes[place], self._ends[place] = codes, (low, high)
        else:
            self._codes.append(codes)
            self._ends.append((low, high))
        self.notes[name] = note
        written = {"origin": self.origin, "vectors": self.notes}
        with replacing(self.path, parents=True) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                codes=np.stack(self._codes),
                ends=np.array(self._ends),
                written=np.array(json.dumps(written)),
            )
