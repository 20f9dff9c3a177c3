"""What a setting is, in words: they change with every part of it, and only with these."""

import copy
import functools
import importlib
import os
import shutil
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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


def called(names, body="a - b"):
    """A function of these parameters; both orders have one code."""
    return eval(f"lambda {names}: {body}")


def listed(*values):
    """An array of objects, whose bytes are their addresses."""
    found = np.empty(len(values), object)
    found[:] = [[value] for value in values]
    return found


class Two:
    def one(self, x):
        return x

    def other(self, x):
        return x + 1


BANK = Bank(torch.eye(3))
ONE, OTHER = Bank(torch.eye(3)), Bank(torch.ones(3, 3))
WEAK, STRONG = closure(0.1), closure(0.2)
TWO = Two()
PAIRS = {
    "number": (0.1, 0.2),
    "type of a number": (1, 1.0),
    "tensor": (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-7])),
    "dtype": (torch.zeros(2), torch.zeros(4, dtype=torch.bfloat16)),
    "dtype of as many bytes": (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
    "shape": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "array": (np.arange(3), np.arange(3) + 1),
    "array's dtype": (np.zeros(2), np.zeros(2, np.int64)),
    "array's shape": (np.zeros((2, 3)), np.zeros((3, 2))),
    "array of objects": (listed(1, 2), listed(1, 3)),
    "key": ({"a": 1}, {"b": 1}),
    "order": ([[1], [2]], [[2], [1]]),
    "closure": (closure(0.1), closure(0.2)),
    "code": (lambda x: x + 1, lambda x: x + 2),
    "operation": (lambda x: x + 1, lambda x: x - 1),
    "method that is called": (lambda x: x.sin(), lambda x: x.cos()),
    "method of an object": (TWO.one, TWO.other),
    "function of a library": (F.relu, F.silu),
    "class of a library": (nn.ReLU(), nn.SiLU()),
    "partial's function": (functools.partial(torch.sin), functools.partial(torch.cos)),
    "partial's argument": (functools.partial(torch.mul, 1), functools.partial(torch.mul, 2)),
    "augmentation": (grey(0.0), grey(0.2)),
    "module": (nn.Linear(2, 2), nn.Linear(2, 2)),
    "attribute": (BANK, changed_in_place(BANK, lambda one: one.names.add("d"))),
    "rows": (BANK, changed_in_place(BANK, lambda one: one.rows.mul_(2))),
    "names of parameters": (called("a, b"), called("b, a", "b - a")),
    "sparse tensor": (torch.eye(2).to_sparse(), torch.tensor([[0.0, 1], [1, 0]]).to_sparse()),
    "conjugate": (torch.tensor([1j]).conj(), torch.tensor([2j]).conj()),
    "places of objects": ([ONE, OTHER, ONE], [ONE, OTHER, OTHER]),
    "places of closures": ([WEAK, STRONG, WEAK], [WEAK, STRONG, STRONG]),
    "override": (BANK, changed_in_place(BANK, lambda one: setattr(one, "strength", 0.2))),
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


# Each text makes a callable p that depends on VALUE.
KINDS = """
--- list
TABLE = [0.1, VALUE]
def p(x): return x * TABLE[1]
--- dictionary
TABLE = {'a': (0.1, [VALUE])}
def p(x): return x * TABLE['a'][1][0]
--- array
TABLE = np.array([0.1, VALUE])
def p(x): return x * TABLE[1]
--- tensor
TABLE = torch.tensor([0.1, VALUE])
def p(x): return x * TABLE[1]
--- picture
P = Image.new('L', (2, 2), int(99 * VALUE))
def p(x): return x + torch.from_numpy(np.array(P))
--- transform
T = v2.RandomGrayscale(VALUE)
def p(x): return T(x)
--- partial
P = functools.partial(torch.mul, other=VALUE)
def p(x): return P(x)
--- class variable
class P:
    s = (0.1, VALUE)
    def __call__(self, x): return x * self.s[1]
p = P()
--- inherited
class B:
    s = [VALUE]
class P(B):
    def __call__(self, x): return x * self.s[0]
p = P()
--- static method
class P:
    @staticmethod
    def s(): return VALUE
    def __call__(self, x): return x * self.s()
p = P()
--- class method
class P:
    @classmethod
    def s(cls): return VALUE
    def __call__(self, x): return x * self.s()
p = P()
--- property
class P:
    @property
    def s(self): return VALUE
    def __call__(self, x): return x * self.s
p = P()
--- slots
class P:
    __slots__ = ('__s',)
    def __init__(self, s): self.__s = [s]
    def __call__(self, x): return x * self.__s[0]
p = P(VALUE)
--- inherited slots
class B:
    __slots__ = ('s',)
class P(B):
    __slots__ = ()
    def __call__(self, x): return x * self.s
p = P()
p.s = VALUE
--- default
def p(x, s=VALUE): return x * s
--- keyword's default
def p(x, *, s=VALUE): return x * s
--- function
def s(): return VALUE
def p(x): return x * s()
--- cached property
class P:
    @functools.cached_property
    def s(self): return VALUE
    def __call__(self, x): return x * self.s
p = P()
--- private class variable
class P:
    _s = (0.1, VALUE)
    def __call__(self, x): return x * self._s[1]
p = P()
--- frozen class
@dataclasses.dataclass(frozen=True)
class P:
    s: int = 1
    def __call__(self, x): return x * VALUE
p = P()
--- list of one's own
class L(list):
    def __call__(self, x): return x * VALUE
p = L([1])
--- cached function
@functools.cache
def s(): return VALUE
def p(x): return x * s()
--- decorated function
@torch.no_grad()
def p(x): return x * VALUE
--- function's attribute
def p(x): return x * p.s[0]
p.s = [VALUE]
--- object
class C:
    def __init__(self): self.s = VALUE
c = C()
def p(x): return x * c.s
--- helper's data
import helper
def p(x): return x * helper.S[1]
--- helper's data by name
import helper
def p(x): return x * getattr(helper, 'S')[1]
--- helper's function
from helper import scale
def p(x): return scale(x)
--- helper's class
import helper
p = helper.Scale()
--- helper's private data
import helper
def p(x): return x * helper._S[1]
--- helper as an attribute
import helper
class P:
    def __init__(self): self.own = helper
    def __call__(self, x): return x * self.own.S[1]
p = P()
--- helper in a closure
def made():
    import helper
    return lambda x: x * helper.S[1]
p = made()
--- helper inside a function
def p(x):
    import helper
    return x * helper.S[1]
--- built-in function
F = torch.sin if VALUE < 0.5 else torch.cos
def p(x): return F(x)
"""
HELPER = """
S = _S = [0.1, VALUE]

def scale(x):
    return x * S[1]

class Scale:
    def __call__(self, x):
        return scale(x)
"""
IMPORTS = """
import dataclasses, functools
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
"""


TEXTS = dict(text.split("\n", 1) for text in KINDS.split("--- ")[1:])


@pytest.mark.parametrize("kind", TEXTS.values(), ids=TEXTS)
def test_all_that_a_callable_names_is_part_of_it(kind, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def state(value):
        """The state of p in newly imported modules; a call does not change it."""
        for name, text in (("helper", HELPER), ("own", IMPORTS + kind)):
            (tmp_path / f"{name}.py").write_text(text.replace("VALUE", value))
            monkeypatch.delitem(sys.modules, name, raising=False)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        importlib.invalidate_caches()
        p = importlib.import_module("own").p
        before = state_of(p)
        p(torch.ones(3, 2, 2))
        assert state_of(p) == before
        return before

    assert state("0.2") == state("0.2")
    assert state("0.2") != state("0.9")


def test_what_a_cached_property_keeps_is_no_part_of_it():
    class Table:
        @functools.cached_property
        def rows(self):
            return [0.1, 0.2]

    table = Table()
    before = state_of(table)
    assert table.rows
    assert state_of(table) == before


def test_a_long_table_takes_less_than_a_second(monkeypatch):
    monkeypatch.setitem(globals(), "STRENGTH", [(f"{i}.png", i) for i in range(100_000)])
    started = time.process_time()
    state_of(by_a_global)
    assert time.process_time() - started < 1


def test_many_objects_and_sets_that_hold_one_another_take_less_than_a_second():
    class Node:
        def __init__(self, number):
            self.number, self.others = number, set()

    nodes = [Node(number) for number in range(30)]
    for node in nodes:
        node.others |= {*nodes}
    chain = Node(0), [Node(number) for number in range(3_000)]
    started = time.process_time()
    assert state_of(nodes) == state_of(nodes)
    assert len(state_of(chain)) == 64
    assert time.process_time() - started < 1


def test_another_process_finds_the_same_state(tmp_path):
    """Whatever the order of its sets, and wherever it keeps things."""
    (tmp_path / "own.py").write_text(
        textwrap.dedent("""
        from influence_ssl._state import state_of

        SCALE = 0.5
        WORDS = {"one": {"d", "e", "f"}, "two": frozenset("xyz")}

        class Part:
            def __init__(self, name):
                self.name = name

            def __hash__(self):
                return hash(self.name)

        class Own:
            words = {"g", "h", "i"}

            def __init__(self):
                self.kinds = {"red", "green", "blue", "grey"}
                self.parts = {Part(name) for name in self.kinds}
                self.found = {part: part.name for part in self.parts}
                self.scale = lambda x: x * SCALE if x in {"a", "b", "c"} else WORDS

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
