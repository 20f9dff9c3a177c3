"""What is brought back: few files of limited size, the most valuable first, whole or refused."""

import json
import zipfile

import numpy as np
import pytest

from influence_lab.gpu import packing
from influence_lab.gpu.packing import pack, unpack
from influence_ssl import InfluenceError

PART = 2**18


@pytest.fixture
def small(monkeypatch):
    """Limits by which the tests need not write megabytes."""
    monkeypatch.setattr(packing, "BYTES", PART)
    monkeypatch.setattr(packing, "TOTAL", 5 * PART)
    monkeypatch.setattr(packing, "SMALL", PART // 16)


def written(root, **sizes):
    """Files of random bytes, which no archive makes smaller, and their names."""
    rng = np.random.default_rng(0)
    for name, size in sizes.items():
        path = root / "results" / f"{name}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(size))
    return [f"results/{name}.bin" for name in sizes]


def within_the_limits(out):
    sizes = [path.stat().st_size for path in out.iterdir()]
    assert len(sizes) <= packing.FILES
    assert max(sizes) <= packing.BYTES
    assert sum(sizes) <= packing.TOTAL


def test_the_limits_themselves():
    assert (packing.FILES, packing.BYTES, packing.TOTAL) == (8, 16 * 2**20, 64 * 2**20)


@pytest.mark.usefixtures("small")
def test_files_come_back_as_they_were(tmp_path):
    names = written(tmp_path / "state", a=10, b=PART, c=PART + 1, d=PART // 16, e=0)
    assert pack(tmp_path / "state", names, tmp_path / "out") == []
    within_the_limits(tmp_path / "out")
    assert sorted(unpack(tmp_path / "out", tmp_path / "back")) == sorted(names)
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "state" / name).read_bytes()


@pytest.mark.usefixtures("small")
def test_what_is_worth_least_is_left_out(tmp_path):
    sizes = {f"small{k}": PART // 17 for k in range(20)}
    names = written(tmp_path / "state", first=2 * PART, **sizes, second=2 * PART, third=PART)
    left = pack(tmp_path / "state", names, tmp_path / "out")
    within_the_limits(tmp_path / "out")
    assert "results/first.bin" not in left
    assert [n for n in left if "small" in n] == [n for n in names if n in left and "small" in n]
    assert left[-1] == "results/third.bin"
    assert 0 < sum("small" in name for name in left) < 10
    with zipfile.ZipFile(tmp_path / "out" / packing.ARCHIVE) as members:
        assert json.loads(members.read("manifest.json"))["left out"] == left
    assert set(unpack(tmp_path / "out", tmp_path / "back")) == set(names) - set(left)


@pytest.mark.usefixtures("small")
def test_a_file_that_is_there_already_counts(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for k in range(6):
        (out / f"log{k}").write_text("mine")
    names = written(tmp_path / "state", two=2 * PART, one=PART // 2)
    assert pack(tmp_path / "state", names, out) == ["results/two.bin"]
    within_the_limits(out)
    assert (out / "log0").read_text() == "mine"


@pytest.mark.usefixtures("small")
def test_a_later_pack_replaces_what_changed_and_nothing_else(tmp_path):
    state, out = tmp_path / "state", tmp_path / "out"
    names = written(state, same=PART, changes=2 * PART)
    pack(state, names, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (state / names[1]).write_bytes(b"short now" * PART)
    (state / names[1]).write_bytes(np.random.default_rng(1).bytes(PART // 2))
    pack(state, names, out)
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert after.keys() == before.keys() - {"results_changes.bin.1"}
    assert after["results_same.bin.0"] == before["results_same.bin.0"]
    assert after["results_changes.bin.0"] != before["results_changes.bin.0"]
    unpack(out, tmp_path / "back")
    assert (tmp_path / "back" / names[1]).read_bytes() == (state / names[1]).read_bytes()


@pytest.mark.usefixtures("small")
def test_damage_is_refused(tmp_path):
    state, out = tmp_path / "state", tmp_path / "out"
    pack(state, written(state, large=PART), out)
    part = out / "results_large.bin.0"
    data = part.read_bytes()
    part.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(InfluenceError, match=r"results/large\.bin is damaged"):
        unpack(out, tmp_path / "back")
    part.unlink()
    with pytest.raises(InfluenceError, match=r"results_large\.bin\.0: missing"):
        unpack(out, tmp_path / "back")
    with pytest.raises(InfluenceError, match=r"no results\.zip in it"):
        unpack(tmp_path, tmp_path / "back")
    (out / "results.zip").write_bytes(b"no zip")
    with pytest.raises(InfluenceError, match="not an archive of results"):
        pack(state, [], out)
