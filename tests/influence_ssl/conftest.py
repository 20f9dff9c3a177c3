import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 24 images of 10 x 10 pixels in two folders, and encoders."""
    # Here, because it needs torchvision, which the tests on a machine with a card go without.
    from commands import ENCODERS

    rng = np.random.default_rng(0)
    for k in range(24):
        path = tmp_path / "images" / ("cat" if k % 2 else "dog") / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)).save(path)
    (tmp_path / "mine.py").write_text(ENCODERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path
