from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import shapes
from durations import Durations, longest_first, quickest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Before matplotlib is imported: no test opens a window.
os.environ.setdefault("MPLBACKEND", "agg")
sys.path.insert(0, str(Path(__file__).parent / "site"))
shapes.install()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A headless Chromium, for the pages of the book and of the report."""
    from playwright.sync_api import sync_playwright

    from browser import FLAGS, MISSING, find

    path = find()
    if path is None and os.environ.get("CI"):
        pytest.fail(MISSING, pytrace=False)
    if path is None:  # a reader without Chromium can still run all other tests
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--within", type=float, metavar="SECONDS", help=quickest.__doc__)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed the global generators before the fixtures: no test depends on those before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    # With several processes, the one that hears of every test.
    if not hasattr(config, "workerinput") and config.pluginmanager.has_plugin("cacheprovider"):
        config.pluginmanager.register(Durations(config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (seconds := config.getoption("--within")) is not None:
        chosen = quickest(config, items, seconds)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]
    if hasattr(config, "workerinput"):
        longest_first(config, items)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
