"""What a setting is, in words: they change with every part of it, and only with these."""

import copy
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from influence_ssl._state import state_of

STRENGTH = 0.1


def by_a_global(x):
    return x * STRENGTH


def by_a_helper(x):
    return by_a_global(x)


class Bank:
    """Of negatives, with a link to itself and a generator."""

    def __init__(self, rows):
        self.rows, self.names, self.generator = rows, {"b", "a", "c"}, torch.Generator()
        self.own = self

    def __call__(self, x):
        return x @ self.rows.T


def closure(factor):
    return lambda x: x * factor


def grey(p):
    return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomGrayscale(p)])


def changed_in_place(value, change):
    value = copy.deepcopy(value)
    change(value)
    return value


BANK = Bank(torch.eye(3))
PAIRS = {
    "number": (0.1, 0.2),
    "type of a number": (1, 1.0),
    "tensor": (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-7])),
    "dtype": (torch.zeros(2), torch.zeros(4, dtype=torch.bfloat16)),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "array": (np.arange(3), np.arange(3) + 1),
    "closure": (closure(0.1), closure(0.2)),
    "code": (lambda x: x + 1, lambda x: x + 2),
    "augmentation": (grey(0.0), grey(0.2)),
    "module": (nn.Linear(2, 2), nn.Linear(2, 2)),
    "attribute": (BANK, changed_in_place(BANK, lambda one: one.names.add("d"))),
    "rows": (BANK, changed_in_place(BANK, lambda one: one.rows.mul_(2))),
    "method": (BANK.__call__, changed_in_place(BANK, lambda one: one.rows.mul_(2)).__call__),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_other_parts_make_another_state(pair):
    first, second = pair
    assert state_of(first) != state_of(second)
    assert state_of(first) == state_of(first)
    if not callable(first) or not hasattr(first, "__code__"):
        assert state_of(copy.deepcopy(first)) == state_of(first)


def test_equal_parts_make_one_state():
    assert state_of(closure(0.1)) == state_of(closure(0.1))
    assert state_of(grey(0.2)) == state_of(grey(0.2))
    assert state_of({"a": 1, "b": 2}) == state_of({"b": 2, "a": 1})
    assert state_of(Bank(torch.eye(3))) == state_of(Bank(torch.eye(3)))
    generators = torch.Generator(), torch.Generator()
    assert state_of(generators[0]) == state_of(generators[1])
    assert state_of(generators[0], id) != state_of(generators[1], id)


def test_a_number_of_the_function_s_module_is_part_of_it(monkeypatch):
    before = state_of(by_a_global), state_of(by_a_helper)
    monkeypatch.setitem(globals(), "STRENGTH", 0.2)
    assert state_of(by_a_global) != before[0]
    assert state_of(by_a_helper) != before[1]


def test_a_number_of_the_class_is_part_of_its_objects(monkeypatch):
    monkeypatch.setattr(Bank, "strength", 0.1, raising=False)
    before = state_of(BANK)
    monkeypatch.setattr(Bank, "strength", 0.2)
    assert state_of(BANK) != before


def test_another_process_finds_the_same_state(tmp_path):
    """Whatever the order of its sets, and wherever it keeps things."""
    (tmp_path / "own.py").write_text(
        textwrap.dedent("""
        from influence_ssl._state import state_of

        SCALE = 0.5

        class Own:
            def __init__(self):
                self.kinds = {"red", "green", "blue", "grey"}
                self.scale = lambda x: x * SCALE if x in {"a", "b", "c"} else self.kinds

            def __call__(self, x):
                return self.scale(x)

        print(state_of(Own()))
        """)
    )
    found = {
        subprocess.run(
            [sys.executable, str(tmp_path / "own.py")], check=True, capture_output=True, text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1
