"""The shapes that the core's annotations name are checked, all of them."""

import ast
import importlib
import inspect

import pytest
import shapes
import torch
from jaxtyping import TypeCheckError
from torch import nn

from influence_ssl._layers import Layer


def named(node: ast.AST) -> bool:
    """Whether a function's signature names a shape."""
    if not isinstance(node, ast.FunctionDef):
        return False
    return "Float[" in ast.unparse(node.args) + ast.unparse(node.returns or ast.Constant(None))


@pytest.mark.parametrize("name", shapes.MODULES)
def test_every_function_that_names_a_shape_is_checked(name):
    module = importlib.import_module(name)
    tree = ast.parse(inspect.getsource(module))
    scopes = [(module, tree)]
    scopes += [(getattr(module, x.name), x) for x in tree.body if isinstance(x, ast.ClassDef)]
    found = [(owner, x.name) for owner, scope in scopes for x in scope.body if named(x)]
    assert all(hasattr(getattr(owner, name), "__wrapped__") for owner, name in found)
    # None stands in a function inside another, where none would be checked.
    assert len(found) == sum(map(named, ast.walk(tree))) > 3


def test_a_wrong_shape_is_an_error():
    layer = Layer("linear", [nn.Linear(3, 2)], 2, 3)
    layer.project(torch.zeros(2, 3))
    with pytest.raises(TypeCheckError, match="project"):
        layer.project(torch.zeros(2, 3, dtype=torch.int64))
    columns, delta = torch.zeros(5, 1, 4, 3), torch.zeros(5, 4, 2)
    assert layer.contract(layer.modules[0], columns, delta).shape == (5, 2, 3)
    with pytest.raises(TypeCheckError, match="contract"):
        layer.contract(layer.modules[0], columns[:, 0], delta)
