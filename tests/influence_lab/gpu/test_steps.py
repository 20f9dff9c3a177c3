"""Steps: done once, in order, within the time, and recorded as they come."""

import json
import time

import pytest

from influence_lab.gpu.budget import Budget, OutOfTime, ending
from influence_lab.gpu.steps import Journal, Partly, Step, carry_out
from influence_ssl import InfluenceError


class Clock:
    """Seconds that pass when a step says so."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def journal(folder, **origin):
    return Journal(folder / "steps.json", {"device": "a card", **origin}, "1a2b")


def run(steps, found, budget):
    said = []
    return carry_out(steps, found, budget, said.append), said


def taking(seconds, clock, value=None, begun=None):
    """A step's work that lets so many seconds pass."""

    def work(budget):
        clock.now += seconds
        if begun is not None:
            begun.append(value)
        return value

    return work


def test_a_second_call_goes_on_where_the_first_one_stopped(tmp_path, clock):
    begun = []
    steps = [Step(str(k), 50, taking(60, clock, k, begun)) for k in range(4)]
    left, _ = run(steps, journal(tmp_path), Budget(130, clock))
    assert (begun, left) == ([0, 1], ["2", "3"])
    left, said = run(steps, journal(tmp_path), Budget(130, clock))
    assert (begun, left) == ([0, 1, 2, 3], [])
    assert said[:2] == ["0: done before", "1: done before"]
    rows = json.loads((tmp_path / "steps.json").read_text())["steps"]
    assert [rows[str(k)]["value"] for k in range(4)] == [0, 1, 2, 3]
    assert {row["code"] for row in rows.values()} == {"1a2b"}


def test_no_step_is_begun_without_the_time_that_it_takes(tmp_path, clock):
    begun = []
    steps = [Step("long", 100, taking(100, clock, "long", begun))]
    steps += [Step("short", 10, taking(10, clock, "short", begun))]
    left, said = run(steps, journal(tmp_path), Budget(99, clock))
    assert (begun, left) == (["short"], ["long"])
    assert said[0] == "long: not begun, it takes 100 s of 99 left"
    assert clock.now == 10


def test_what_a_step_has_so_far_is_kept_and_the_step_goes_on(tmp_path, clock):
    found = journal(tmp_path)

    def work(budget):
        before = found.value("training") or 0
        return before + 1 if before == 2 else Partly(before + 1)

    steps = [Step("training", 0, work)]
    for number in (1, 2):
        assert run(steps, found, Budget(9, clock))[0] == ["training"]
        found = journal(tmp_path)
        assert found.value("training") == number
    assert run(steps, found, Budget(9, clock))[0] == []
    assert journal(tmp_path).value("training") == 3


def test_a_failure_costs_its_own_step_alone_and_is_tried_again(tmp_path, clock):
    broken = True

    def work(budget):
        if broken:
            raise ValueError("out of order")
        return 1

    steps = [Step("broken", 0, work), Step("whole", 0, taking(1, clock, 2))]
    left, said = run(steps, journal(tmp_path), Budget(9, clock))
    assert left == ["broken"]
    assert said[0] == "broken: failed, ValueError: out of order"
    row = journal(tmp_path).steps["broken"]
    assert row["state"] == "failed"
    assert "raise ValueError" in row["error"]
    broken = False
    assert run(steps, journal(tmp_path), Budget(9, clock))[0] == []


def test_a_step_that_overruns_is_stopped_and_what_it_had_is_kept(tmp_path, clock):
    found, written = journal(tmp_path), []

    def work(budget):
        found.note("slow", "partly", 0, value="half")
        try:
            time.sleep(60)
        except Exception:  # nothing below may take the end for an error of its own
            pytest.fail("was taken for an error")

    steps = [Step("slow", 0, work), Step("next", 0, taking(1, clock, 1))]
    said = []
    with ending(0.05):
        left = carry_out(steps, found, Budget(9, clock), said.append, lambda: written.append(1))
    assert left == ["slow", "next"]
    assert said == ["slow: stopped, the time is over; the next call goes on"]
    assert journal(tmp_path).value("slow") == "half"
    assert written == [1]


def test_the_end_comes_once_and_not_after_the_work():
    with pytest.raises(OutOfTime), ending(0.01):
        time.sleep(5)
    with ending(0.05):
        pass
    time.sleep(0.06)


def test_results_of_another_machine_are_refused(tmp_path, clock):
    run([Step("one", 0, taking(1, clock, 1))], journal(tmp_path), Budget(9, clock))
    with pytest.raises(InfluenceError, match=r"results of another device \(a card\)"):
        journal(tmp_path, device="another card")
