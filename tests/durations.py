"""What each test took when last run: ``make unit`` runs the quickest; the longest come first."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

KEY = "durations"


class Durations:
    """Notes in pytest's cache how many seconds each test's set-up, call and teardown take."""

    def __init__(self, config: pytest.Config) -> None:
        self.cache = config.cache
        self.seen: dict[str, dict[str, float]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seen.setdefault(report.nodeid, {})[report.when] = report.duration

    def pytest_sessionfinish(self) -> None:
        self.cache.set(KEY, {**self.cache.get(KEY, {}), **self.seen})


def quickest(config: pytest.Config, items: list[pytest.Item], seconds: float) -> set[pytest.Item]:
    """The tests that took least, as many as fit into ``seconds`` on each process.

    What a file's tests share is set up by the first of them that runs, so a file's set-ups count as
    a whole, and once. A test that has never run is taken as quick.
    """
    known = config.cache.get(KEY, {})
    calls: dict[pytest.Item, float] = {}
    shared: dict[object, float] = defaultdict(float)
    for item in items:
        took = known.get(item.nodeid, {})
        calls[item] = took.get("call", 0.0)
        shared[item.path] += took.get("setup", 0.0) + took.get("teardown", 0.0)
    left = seconds * getattr(config, "workerinput", {}).get("workercount", 1)
    chosen = set()
    for item in sorted(items, key=lambda item: (shared[item.path] + calls[item], item.nodeid)):
        left -= calls[item] + shared.pop(item.path, 0.0)
        if left < 0:
            break
        chosen.add(item)
    return chosen


def longest_first(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort files by the time they took, or else by their number of tests.

    Each process runs whole files, and none should begin a long one when the others have ended.
    """
    known = config.cache.get(KEY, {})
    took: dict[object, float] = defaultdict(float)
    for item in items:
        took[item.path] += sum(known.get(item.nodeid, {}).values())
    count = Counter(item.path for item in items)
    items.sort(key=lambda item: (-took[item.path], -count[item.path]))
