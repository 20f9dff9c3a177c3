"""Memory that can still be taken: of a card, of the machine, or of the limits set to a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> float:
    """Bytes that can still be taken on a device.

    On a CPU the smallest of what the machine has available, what its container leaves and what
    the process's own limits on addresses leave.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return max(0.0, min([psutil.virtual_memory().available, *_limits(), *_containers()]))


def _limits() -> Iterator[float]:
    """What is left of the limits that ``ulimit`` sets, on systems that have them."""
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
    """What is left of the limits of the process's control group and of those above it (Linux)."""
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
    # The page cache is counted as used, and given back when someone asks for it.
    cache = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
    if most.isdecimal():
        yield float(int(most) - taken + cache)
