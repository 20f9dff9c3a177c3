"""Steps in the order of what they are worth: each recorded when it is done, and done once.

A step is begun where the time that is left may suffice for it. One that fails is recorded with its
error, and the next one begins: a minute on a card is not lost to a fault elsewhere. A step that
returns :class:`Partly` goes on at the next call.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_lab.gpu.budget import Budget, OutOfTime
from influence_ssl.errors import InfluenceValueError, described
from influence_ssl.files.writing import replacing


@dataclass(frozen=True)
class Partly:
    """What a step has so far."""

    value: Any


@dataclass(frozen=True)
class Step:
    """One result. It is begun where ``least`` seconds are left, and ``run`` keeps to the budget."""

    name: str
    least: float
    run: Callable[[Budget], Any]


def short(run: Callable[..., Any], *arguments: Any) -> Callable[[Budget], Any]:
    """The work of a step that does not ask how much time is left."""

    def work(budget: Budget) -> Any:
        return run(*arguments)

    return work


class Journal:
    """The results of all steps in one file, which belongs to one ``origin``.

    A file of another origin (another device or other sizes) is refused: results of two machines
    would be mixed.
    """

    def __init__(self, path: Path, origin: dict[str, Any], code: str) -> None:
        self.path, self.origin, self.code = path, origin, code
        self.steps: dict[str, dict[str, Any]] = {}
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if other := [name for name in origin if found["origin"].get(name) != origin[name]]:
                raise InfluenceValueError(
                    f"{path}: has results of another {' and '.join(other)} "
                    f"({', '.join(str(found['origin'].get(name)) for name in other)}); "
                    "give another --state"
                )
            self.steps = found["steps"]

    def done(self, name: str) -> bool:
        """Whether the step has its whole result."""
        return self.steps.get(name, {}).get("state") == "done"

    def value(self, name: str) -> Any:
        """What a step has returned so far, ``None`` where it has returned nothing."""
        return self.steps.get(name, {}).get("value")

    def note(self, name: str, state: str, seconds: float, **found: Any) -> None:
        """Record a step and write the file whole. Seconds of several calls add up."""
        before = self.steps.get(name, {}).get("seconds", 0.0)
        row = {"state": state, "seconds": round(before + seconds, 2), "code": self.code, **found}
        self.steps[name] = row
        with replacing(self.path, parents=True) as temporary:
            content = {"origin": self.origin, "steps": self.steps}
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def carry_out(
    steps: Sequence[Step],
    journal: Journal,
    budget: Budget,
    say: Callable[[str], None],
    written: Callable[[], None] = lambda: None,
) -> list[str]:
    """Do every step that is not done, as the time allows; ``written`` is called after each.

    Returns the names of the steps that are still to be done.
    """
    for step in steps:
        if journal.done(step.name):
            say(f"{step.name}: done before")
            continue
        if budget.left < step.least:
            say(f"{step.name}: not begun, it takes {step.least:.0f} s of {budget.left:.0f} left")
            continue
        begin = time.perf_counter()

        def took(begin: float = begin) -> float:
            return time.perf_counter() - begin

        try:
            found = step.run(budget)
        except OutOfTime:
            journal.note(step.name, "stopped", took(), value=journal.value(step.name))
            say(f"{step.name}: stopped, the time is over; the next call goes on")
            written()
            break
        except Exception as error:
            journal.note(
                step.name,
                "failed",
                took(),
                value=journal.value(step.name),
                error=traceback.format_exc(),
            )
            say(f"{step.name}: failed, {described(error)}")
        else:
            part = isinstance(found, Partly)
            value = found.value if isinstance(found, Partly) else found
            journal.note(step.name, "partly" if part else "done", took(), value=value)
            say(f"{step.name}: {'so far' if part else 'done'} in {took():.1f} s, {value!r:.200}")
        written()
    return [step.name for step in steps if not journal.done(step.name)]
