"""Free memory: of a card, of the machine, or within the limits set for a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> float:
    """The number of bytes that can still be allocated on a device.

    On a CPU, it is the smallest of the machine's available memory and of what the container and the
    process's own address limits leave.
    """
    if device.type == "cuda":
        # What PyTorch holds of freed tensors looks taken from outside, but is there to be used.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    return max(0.0, min([psutil.virtual_memory().available, *_limits(), *_containers()]))


def _limits() -> Iterator[float]:
    """What the limits that ``ulimit`` sets leave, on systems that have them."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    for name, used in (("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")):
        limit = resource.getrlimit(getattr(resource, name))[0]
        taken = getattr(psutil.Process().memory_info(), used, None)
        if limit != resource.RLIM_INFINITY and taken is not None:
            yield float(limit - taken)


def _containers() -> Iterator[float]:
    """What the limits of the process's control group and of its ancestors leave (Linux)."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":  # version 2
            names, root = ("memory.max", "memory.current"), _GROUPS
        elif "memory" in kinds.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
            root = _GROUPS / "memory"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if root in (folder, *folder.parents):
                yield from _left(folder, *names)


def _left(folder: Path, limit: str, used: str) -> Iterator[float]:
    try:
        most, taken = (folder / limit).read_text().strip(), int((folder / used).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    # The page cache counts as used but is released on demand.
    cache = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
    if most.isdecimal():
        yield float(int(most) - taken + cache)
