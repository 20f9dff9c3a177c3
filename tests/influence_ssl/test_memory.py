"""Free memory: the machine's, and the limits of containers and of the process."""

import subprocess
import sys

import psutil
import pytest
import torch

from influence_ssl import _memory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def ample(monkeypatch):
    """A machine with a terabyte, so that the limits alone decide."""

    class Available:
        available = 10**12

    monkeypatch.setattr(psutil, "virtual_memory", Available)
    monkeypatch.setattr(_memory, "_limits", lambda: iter(()))


def group(folder, limit, used, cache, names=("memory.max", "memory.current")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


def test_the_tightest_group_above_the_process_counts_without_its_page_cache(tmp_path, monkeypatch):
    root = tmp_path / "cgroup"
    group(root / "a" / "b", "max", 900, 100)
    group(root / "a", 5000, 3000, 500)
    group(root / "other", 10, 10, 0)
    (tmp_path / "own").write_text("0::/a/b\n")
    monkeypatch.setattr(_memory, "_GROUPS", root)
    monkeypatch.setattr(_memory, "_OWN", tmp_path / "own")
    assert _memory.free_memory(CPU) == 5000 - 3000 + 500


def test_version_1_has_other_names(tmp_path, monkeypatch):
    root = tmp_path / "cgroup"
    names = "memory.limit_in_bytes", "memory.usage_in_bytes"
    group(root / "memory" / "job", 800, 300, 0, names)
    (tmp_path / "own").write_text("12:cpu,cpuacct:/job\n5:memory:/job\n")
    monkeypatch.setattr(_memory, "_GROUPS", root)
    monkeypatch.setattr(_memory, "_OWN", tmp_path / "own")
    assert _memory.free_memory(CPU) == 500


def test_without_groups_the_machine_s_memory_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(_memory, "_OWN", tmp_path / "absent")
    assert _memory.free_memory(CPU) == 10**12


def test_a_limit_on_addresses_counts():
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    assert resource.RLIMIT_AS
    limit = 6 * 2**30
    program = f"""
import resource, torch, psutil
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
from influence_ssl._memory import free_memory
print(free_memory(torch.device("cpu")), psutil.Process().memory_info().vms)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    free, taken = (float(number) for number in done.stdout.split())
    assert free <= limit - taken + 2**24
    assert free > 0
