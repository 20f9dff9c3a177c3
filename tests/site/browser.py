"""Find a Chromium for the tests of the site, or get one.

In this order: one that is installed, one that Playwright has or can download, one from the
system's package manager. Run as a script, it makes sure that there is one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MISSING = (
    "No Chromium for the tests of the site: install one (Debian and Ubuntu: apt-get install "
    "chromium; macOS: Google Chrome), or run .venv/bin/playwright install chromium"
)


def find() -> str | None:
    """The path of a Chromium that starts, or None."""
    return next((path for path in _candidates() if _starts(path)), None)


def _candidates() -> Iterator[str]:
    yield from filter(None, map(shutil.which, NAMES))
    yield str(MAC)
    yield _bundled()


def _bundled() -> str:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


def _starts(path: str) -> bool:
    # A name on the path may be a stub that only tells how to install the browser.
    try:
        return _quiet(path, "--version", seconds=60)
    except OSError:
        return False


def _quiet(*command: str, seconds: float) -> bool:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def ensure() -> str | None:
    """The path of a Chromium, downloaded or installed where there was none."""
    path = find()
    if path is None:
        print("Getting a Chromium for the tests of the site", flush=True)
        _quiet(sys.executable, "-m", "playwright", "install", "chromium", seconds=600)
        path = find()
    if path is None and shutil.which("apt-get") and os.geteuid() == 0:
        _quiet("apt-get", "update", seconds=300)
        _quiet("apt-get", "install", "-y", "--no-install-recommends", "chromium", seconds=900)
        path = find()
    return path


if __name__ == "__main__" and ensure() is None:
    # Without CI the tests that need a browser are skipped with this line; there they fail.
    sys.exit(MISSING) if os.environ.get("CI") else print(MISSING)
