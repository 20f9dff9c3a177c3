from collections.abc import Callable
from pathlib import Path

import pytest
from again import AGAIN


@pytest.fixture(scope="session")
def made_again(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of results in which one of :data:`again.AGAIN` was made, once in a session."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            root = tmp_path_factory.mktemp("results")
            AGAIN[name].make(root)
            made[name] = root
        return made[name]

    return make
