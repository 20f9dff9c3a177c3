"""Throw away executed chapters when the code or the records that they ran on have changed.

The execution cache is keyed on a chapter's own cells. After a change in ``core/``, in a recorded
result or in the pinned packages it would go on showing the old numbers. This extension keeps a
fingerprint of those files beside the cache; where it differs, the cache is emptied and every
page is read again.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config
    from sphinx.environment import BuildEnvironment

FOLDERS = ("core", "book/results", "book/_ext")
FILES = ("requirements.lock", "book/inventory.yml")
_IGNORED = {"__pycache__", ".ipynb_checkpoints"}


def fingerprint(root: Path) -> str:
    """SHA-256 over the names and contents of every file that a chapter's outputs depend on."""
    paths = [root / name for name in FILES]
    for folder in FOLDERS:
        paths.extend((root / folder).rglob("*"))
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(paths):
        parts = path.relative_to(root).parts
        if (
            not path.is_file()
            or _IGNORED & set(parts)
            or any(p.endswith(".egg-info") for p in parts)
        ):
            continue
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{'/'.join(parts)}\0{content}\n".encode())
    return digest.hexdigest()


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect before myst_nb opens the cache, which it does when the builder starts."""
    wiped = False

    def wipe(app: Sphinx, config: Config) -> None:
        nonlocal wiped
        # JupyterBook leaves the setting empty; myst_nb then puts the cache beside the html folder.
        cache = Path(config.nb_execution_cache_path or Path(app.outdir).parent / ".jupyter_cache")
        stamp = cache / "fingerprint"
        current = fingerprint(Path(app.srcdir))
        wiped = not stamp.exists() or stamp.read_text() != current
        if wiped:
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir(parents=True)
            stamp.write_text(current)

    def outdated(app: Sphinx, env: BuildEnvironment, *_: Any) -> list[str]:
        return sorted(env.found_docs) if wiped else []

    app.connect("config-inited", wipe)
    app.connect("env-get-outdated", outdated)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
