"""Where a result was computed, for every provenance: versions, processor, threads, build."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from influence_ssl.version import __version__

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")
_CPUINFO = Path("/proc/cpuinfo")


@cache
def processor() -> str:
    """The processor's model name as the system reports it, never empty.

    On Linux it is read from ``/proc/cpuinfo``, under a key that not every processor has. Elsewhere
    :func:`platform.processor` returns the model or its family.
    """
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name[ \t]*:[ \t]*(\S.*)$", text, re.MULTILINE)
    if named:
        return named[1].strip()
    return platform.processor() or platform.machine() or "unknown"


@cache
def _installed() -> dict[str, str]:
    """The versions of :data:`PACKAGES`, read once: a process keeps what it imported."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def made_with() -> dict[str, Any]:
    """The part of a provenance that explains why two machines differ in the last digits.

    Returns:
        ``versions`` of this package, of Python, and of those :data:`PACKAGES` that are installed;
        ``processor`` (model name); ``vector extensions`` that PyTorch's kernels use, given its
        environment variables; ``threads``; and ``torch build``, its version with the local tag and
        the BLAS library that it was built with.
    """
    versions = {"influence-ssl": __version__, "python": platform.python_version()} | _installed()
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return {
        "versions": versions,
        "processor": processor(),
        "vector extensions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch build": f"{torch.__version__}, BLAS {blas[1] if blas else 'unknown'}",
    }


def device_used(device: torch.device) -> dict[str, Any]:
    """``device`` and, of a CUDA device, what decides its last digits.

    Returns:
        ``device``; on a card also ``card`` (its name), ``CUDA`` and ``cuDNN`` (their versions), and
        ``TF32``: whether the inputs of float32 ``products`` and ``convolutions`` are rounded to ten
        bits.
    """
    found: dict[str, Any] = {"device": str(device)}
    if device.type == "cuda":
        found["card"] = torch.cuda.get_device_name(device)
        found["CUDA"], found["cuDNN"] = torch.version.cuda, torch.backends.cudnn.version()
        found["TF32"] = {
            "products": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,
        }
    return found
