from __future__ import annotations

import pytest

from pages import SITE


@pytest.fixture(scope="session")
def built_site() -> None:
    if not (SITE / "index.html").exists():
        pytest.fail("The site is not built: run make book", pytrace=False)
