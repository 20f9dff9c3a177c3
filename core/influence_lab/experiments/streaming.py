"""A stream of images that is never stored: processor time and memory by its length."""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

from influence_lab.benchmark import scale
from influence_lab.experiments.task import Task
from influence_lab.records import results
from influence_ssl.errors import InfluenceValueError

SIZES = {"tiny": (1_000, 2_000)}
LARGE = (10_000, 100_000, 1_000_000)


def measure(n: int) -> dict[str, float]:
    """Processor time for scoring ``n`` streamed images, and the bytes added to this process."""
    begin = time.process_time()
    size = scale.peak(lambda: scale.stream(n))
    return {"images": n, "seconds": round(time.process_time() - begin, 2), "bytes": size}


def reproduce(task: Task) -> str:
    """Score longer and longer streams in two passes, keeping nothing, and record each cost."""
    if not sys.platform.startswith("linux"):
        raise InfluenceValueError("stream: memory is read from /proc; run it on Linux.")
    begin, runs = time.perf_counter(), []
    first = scale.Stream(1000).__getitems__(list(range(1000)))
    digest = hashlib.sha256(first.numpy().tobytes()).hexdigest()
    scale.stream(SIZES["tiny"][0])  # what is loaded once counts for none of them
    for n in SIZES.get(task.profile, LARGE):
        runs.append(measure(n))
        print(f"stream: {n:,} images in {runs[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    record: dict[str, Any] = {
        "runs": runs,
        "provenance": results.provenance(
            task.command, task.profile, 0, "streams of stripes, 8 x 8 pixels", digest,
            results.device_name("cpu"), time.perf_counter() - begin,
        ),
    }  # fmt: skip
    results.save_json((task.root or results.results_root()) / task.profile / "stream.json", record)
    last = runs[-1]
    return f"{last['images']:,} images in {last['seconds']:.0f} s, {last['bytes'] / 1e6:.0f} MB"
