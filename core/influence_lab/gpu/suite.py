"""Part a: the tests that need a card."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

from influence_lab.gpu.budget import Budget
from influence_lab.gpu.packages import ROOT, environment
from influence_lab.gpu.steps import Step
from influence_lab.gpu.workplace import Workplace

MARKED = re.compile(r"\bmark\.gpu\b")


def files() -> list[str]:
    """The files with tests that need a card; the others' imports may be missing here."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in found if MARKED.search(path.read_text("utf-8"))]


def steps(work: Workplace) -> list[Step]:
    """One run of pytest."""
    return [Step("tests", 60 * work.sizes.least, lambda budget: run(work, budget))]


def run(work: Workplace, budget: Budget) -> dict[str, Any]:
    """How many tests there are, what became of them, and the first lines of each failure.

    On a card none may be skipped. A warning fails no test here, as it does elsewhere: the machine
    has its own versions of everything, and PyTorch warns of some things on a card alone. Raises
    where pytest itself fails, with the end of what it prints.
    """
    report = (work.folder / "tests.xml").resolve()
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider",
            f"--junitxml={report}", *files(),
        ],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=max(budget.left, 1), check=False,
    )  # fmt: skip
    work.say(done.stdout[-20_000:] + done.stderr[-5_000:])
    if not report.is_file():
        raise RuntimeError(f"pytest: exit code {done.returncode}; {done.stdout[-300:]}")
    cases = list(ET.parse(report).getroot().iter("testcase"))
    failures = {
        f"{case.get('classname')}::{case.get('name')}": (bad.get("message") or "")[:500]
        for case in cases
        for bad in (*case.iter("failure"), *case.iter("error"))
    }
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "tests": len(cases),
        "passed": len(cases) - len(failures) - skipped,
        "skipped": skipped,
        "failures": failures,
        "seconds": {str(case.get("name")): float(case.get("time", 0)) for case in cases},
    }
