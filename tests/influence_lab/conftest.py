import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from again import AGAIN
from filelock import FileLock


@pytest.fixture(scope="session")
def made_again(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], Path]:
    """A folder of results in which one of :data:`again.AGAIN` was made, once for all processes."""
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        shared = shared.parent
    own: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in own:
            whole = shared / f"again {name}"
            with FileLock(f"{whole}.lock"):
                if not whole.exists():
                    begun = tmp_path_factory.mktemp("begun")
                    AGAIN[name].make(begun)
                    begun.rename(whole)
            own[name] = tmp_path_factory.mktemp("results") / "again"
            shutil.copytree(whole, own[name])
        return own[name]

    return make
