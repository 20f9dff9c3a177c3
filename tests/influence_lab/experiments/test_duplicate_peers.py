"""Other libraries at planted duplicates: the numbers of a script, and scripts that fail."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from influence_lab.datasets.base import Images
from influence_lab.datasets.lookalikes import file_of
from influence_lab.experiments import duplicate_peers, planted
from influence_lab.experiments.duplicate_peers import Data, Part
from influence_lab.experiments.planted import Pictures

SCRIPT = """
import numpy as np
PACKAGE, METHOD = "numpy", "mean grey"
def rank(paths, z):
    ends = [(i, j) for i in range(len(paths)) for j in range(i)]
    return ends, [-abs(z[i, 0] - z[j, 0]) for i, j in ends]
def find(paths, z):
    print("a library that talks")
    return [pair for pair, likeness in zip(*rank(paths, z)) if likeness >= -5]
def strangeness(paths, z):
    return z[:, 0]
def flagged(paths):
    return {"grey": range(len(paths))}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    """Grey squares; copies differ by at most 2 levels, others by 10 or more, look-alikes by 4."""
    root = tmp_path_factory.mktemp("data")

    def part(place: str, levels: list[int], truth) -> Part:
        folder = root / place
        folder.mkdir(parents=True)
        for k, level in enumerate(levels):
            Image.new("RGB", (12, 12), (level, level, level)).save(folder / f"{k:05}.png")
        z = np.array(levels, np.float32)[:, None]
        return Part(sorted(folder.iterdir()), z, truth)

    grey = list(range(0, 250, 10))
    halves = [
        {
            "cifar10": part(
                f"{half}/cifar10", [*grey, 2, 11], {(0, 25): "jpeg", (1, 26): "mirror"}
            ),
            "photographs": part(f"{half}/photographs", [50, 90, 92], {(1, 2): "crop"}),
            "forms": part(f"{half}/forms", [100, 104, 108], {}),
        }
        for half in (0, 1)
    ]
    return Data(halves, part("foreign", [1, 2, 3, 4, 99, 98], {}), [4, 5], 0.5, "squares", "0")


def measured(body: str, data: Data, folder: Path) -> dict:
    path = folder / "peer.py"
    path.write_text(body)
    return duplicate_peers.run(path, data)


def test_a_script_is_measured_at_its_default_and_at_the_chosen_threshold(data, tmp_path, capsys):
    record = measured(SCRIPT, data, tmp_path)
    assert "talks" not in capsys.readouterr().out
    assert record["error"] is None
    assert record["errors"] == {}
    assert record["represented"]
    # Forms 4 levels apart are false at the default; the threshold is the copies' difference.
    assert record["thresholds"] == {"cifar10": -2, "pictures": -2}
    forms = record["sets"]["forms"]
    assert (forms["default"]["false groups"], forms["default"]["images in false groups"]) == (1, 3)
    assert forms["chosen"]["pairs"] == 0
    cifar = record["sets"]["cifar10"]["default"]
    assert (cifar["pairs"], cifar["false groups"]) == (2, 0)
    assert cifar["recall by kind"] == {"jpeg": 1, "mirror": 1}
    assert cifar["precision"][0] == cifar["recall"][0] == 1
    assert record["sets"]["photographs"]["chosen"]["recall"][0] == 1
    assert record["foreign"][0] == 1
    # Every square is grey, which is no fault in a set of grey pictures.
    assert record["flags"]["grey"] == [0, 0, 33]
    assert len(json.dumps(record)) < 5000
    records = {"one": record | {"represent": 2.0}, "two": None}
    (row, absent), (cost, _) = (
        list(rows)
        for rows in (
            duplicate_peers.quality_rows(records, "default"),
            duplicate_peers.cost_rows(records),
        )
    )
    assert row["look-alikes grouped"] == "3 of 3"
    assert row["CIFAR-10 recall"].startswith("1.000 [")
    assert float(cost["seconds"]) == pytest.approx(record["cpu"] + 2, abs=0.06)
    assert absent == {"library": "two", "note": "not recorded yet"}


def test_turned_copies_are_left_out_of_the_upright_recall(data, tmp_path):
    found = measured(SCRIPT.replace(">= -5", "<= -240"), data, tmp_path)["sets"]["cifar10"][
        "default"
    ]
    assert found["precision"][0] == found["recall"][0] == 0
    only = SCRIPT.replace("return [pair for pair", "return [(0, 25)] or [pair for pair")
    found = measured(only, data, tmp_path)["sets"]["cifar10"]["default"]
    assert found["recall"][0] == 0.5
    assert found["recall upright"][0] == 1


def test_a_library_that_fails_is_recorded_with_its_error(data, tmp_path):
    assert "No module named 'absent'" in measured("import absent", data, tmp_path)["error"]
    failing = SCRIPT.replace("return [pair", "raise OSError('no weights')\n    return [pair")
    record = measured(failing, data, tmp_path)
    assert record["error"] == "OSError: no weights"
    assert "sets" not in record
    # One set of tiny pictures must not hide the others.
    small = "    assert len(z) != 3 or z[0] != 100, 'small'\n    ends ="
    record = measured(SCRIPT.replace("    ends =", small), data, tmp_path)
    assert record["error"] is None
    assert record["errors"] == {"forms": "AssertionError: small"}
    assert set(record["sets"]) == {"cifar10", "photographs"}
    (row,) = duplicate_peers.quality_rows({"one": record}, "chosen")
    assert row["look-alikes grouped"] == "0 of 0, fails on forms"


def test_written_data_are_read_again(tmp_path, monkeypatch):
    """Few images with the real copies; every file keeps its format."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    images = Images("noise", pixels, np.zeros(60, np.int64), [], ())
    few = Pictures([file_of(Image.fromarray(pixels[0]))] * 2), np.array([False, True])
    monkeypatch.setattr(duplicate_peers, "load", lambda *_: images)
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (208, 312, 3), np.uint8))
    monkeypatch.setattr(duplicate_peers, "photographs", lambda: {"noise": photo})
    monkeypatch.setattr(duplicate_peers, "with_foreign", lambda *_: few)
    monkeypatch.setattr(planted, "SETS", {})
    (tmp_path / "data.part" / "0").mkdir(parents=True)  # left by a run that was stopped
    duplicate_peers.write(tmp_path / "data", count=60)
    data = duplicate_peers.read(tmp_path / "data")
    assert data.wanted == [1]
    part = data.halves[1]["cifar10"]
    assert len(part.paths) == len(part.z) == 30 + 26
    assert {path.suffix for path in part.paths} == {".png", ".jpg", ".webp", ".bmp"}
    for (i, j), kind in part.truth.items():
        assert part.paths[i].suffix == ".png"
        same = part.paths[i].read_bytes() == part.paths[j].read_bytes()
        assert same == (kind == "file")
        if same:
            np.testing.assert_allclose(part.z[i], part.z[j], rtol=1e-4)


def test_the_size_of_a_library_does_not_depend_on_who_compiled_it(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicate_peers.sysconfig, "get_path", lambda name: str(tmp_path))
    assert duplicate_peers.added_megabytes() is None
    (tmp_path / "main.pth").touch()
    for name, size in {"peer.py": 3e6, "__pycache__/peer.pyc": 5e6}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(int(size)))
    (tmp_path / "peer-1.dist-info").mkdir()
    (tmp_path / "peer-1.dist-info/METADATA").write_text("Name: peer\nVersion: 1\n")
    (tmp_path / "peer-1.dist-info/RECORD").write_text("peer.py,,\n__pycache__/peer.pyc,,\n")
    assert duplicate_peers.added_megabytes() == 3
