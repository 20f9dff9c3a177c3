from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
from closed_forms import CHECKS, TOLERANCE
from mutations import IN_CLOSED_FORMS, mutated


@pytest.mark.parametrize(
    ("function", "right", "wrong"),
    [m[1:] for m in IN_CLOSED_FORMS],
    ids=[m[0] for m in IN_CLOSED_FORMS],
)
def test_a_wrong_formula_is_found(function, right, wrong):
    module = mutated(function, right, wrong)
    # One that notices is enough, so those that call the function come first.
    calling = {check for check in CHECKS.values() if function in inspect.getsource(check)}
    for check in sorted(CHECKS.values(), key=lambda check: check not in calling):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = not check(module) < TOLERANCE
            except (np.linalg.LinAlgError, ValueError):
                found = True
        if found:
            return
    pytest.fail("no check noticed")


def test_there_are_at_least_twenty():
    assert len(IN_CLOSED_FORMS) >= 20
    assert len({m[1:] for m in IN_CLOSED_FORMS}) == len(IN_CLOSED_FORMS)
