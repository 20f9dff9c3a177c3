"""Keep what a chapter gave for as long as nothing changes that it was made from.

The execution cache is keyed on a chapter's own cells. After a change in the code or in a record it
would go on showing the old numbers. A run therefore leaves, beside the outputs, a digest of every
file of the project that its Python executed or read (``tests/notebooks/tracing`` notes them), and
this extension drops the outputs of which a digest no longer holds. Whoever reads recorded results
also depends on which there are. Weights are not read through Python: those of the records count for
whoever reads records, those beside a module for whoever executes it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.db import NbCacheRecord

if TYPE_CHECKING:
    from jupyter_cache.base import JupyterCacheAbstract
    from nbformat import NotebookNode
    from sphinx.application import Sphinx
    from sphinx.config import Config
    from sphinx.environment import BuildEnvironment

CACHE = "_build/.jupyter_cache"
ALWAYS = ("requirements.lock",)
RESULTS = "book/results/"
WEIGHTS = "*.safetensors"
RESULTS_READER = b"INFLUENCE_SSL_RESULTS"
"""What a module names that looks for recorded results."""
_IGNORED = {".git", ".venv", "_build", "data", "__pycache__"}


def inputs(root: Path, used: Iterable[str]) -> dict[str, str]:
    """The digest of each file, and of each folder's contents, that a run depends on.

    ``used`` holds the files that it executed or read: relative to ``root``, or absolute for a
    package that is installed elsewhere.
    """
    names = {name for name in used if (root / name).is_file()} | {*ALWAYS}
    names = {name for name in names if not _IGNORED & set(Path(name).parts)}
    modules = {root / name for name in names if name.endswith(".py")}
    weights = [path for folder in {m.parent for m in modules} for path in folder.glob(WEIGHTS)]
    if any(RESULTS_READER in module.read_bytes() for module in modules):
        weights += (root / RESULTS).rglob(WEIGHTS)
        names.add(RESULTS)
    names |= {path.relative_to(root).as_posix() for path in weights if path.is_relative_to(root)}
    return {name: _digest(root, name) for name in sorted(names)}


def _digest(root: Path, name: str) -> str:
    path = root / name
    if name.endswith("/"):
        files = (found.relative_to(path).as_posix() for found in path.rglob("*"))
        content = "\n".join(sorted(files)).encode()
    elif path.is_file():
        content = path.read_bytes()
    else:
        return "gone"
    return hashlib.sha256(content).hexdigest()[:16]


def keep(
    root: Path, page: str, notebook: NotebookNode, used: Iterable[str], seconds: float
) -> None:
    """Put the outputs of ``page`` (``book/theory/noise.md``), as just run, into the cache."""
    data = {
        "execution_seconds": seconds,
        "python": sys.version,
        "inputs": inputs(root, used),
    }
    # Without `check_validity`: numbers of execution are what the caller gave.
    get_cache(str(root / CACHE)).cache_notebook_bundle(
        CacheBundleIn(notebook, page, data=data), check_validity=False, overwrite=True
    )


def drop_outdated(root: Path, cache: JupyterCacheAbstract) -> None:
    """Remove from the cache what was made from other files than those that stand there now."""
    digests: dict[str, str] = {}
    for record in cache.list_cache_records():
        data = record.data or {}
        made_from = data.get("inputs", {})
        for name in made_from:
            if name not in digests:
                digests[name] = _digest(root, name)
        whole = (cache.path / "executed" / record.hashkey / "base.ipynb").is_file()
        fresh = made_from and all(digests[name] == made_from[name] for name in made_from)
        if whole and fresh and data.get("python") == sys.version:
            continue
        if whole:
            cache.remove_cache(record.pk)
        else:
            NbCacheRecord.remove_record(record.pk, cache.db)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect before myst_nb opens the cache, which it does when the builder starts."""

    def cache_of(app: Sphinx) -> JupyterCacheAbstract:
        # JupyterBook leaves the setting empty; myst_nb then puts the cache beside the html folder.
        given = app.config.nb_execution_cache_path
        return get_cache(str(given or Path(app.outdir).parent / ".jupyter_cache"))

    def clean(app: Sphinx, config: Config) -> None:
        drop_outdated(Path(app.srcdir), cache_of(app))

    def outdated(app: Sphinx, env: BuildEnvironment, *_: Any) -> list[str]:
        records = cache_of(app).list_cache_records()
        now = {Path(r.uri).with_suffix("").as_posix(): r.created.isoformat() for r in records}
        seen = getattr(env, "executed_at", {})
        setattr(env, "executed_at", now)  # noqa: B010  Sphinx keeps it with the environment
        unknown = {page for page in env.found_docs if "kernelspec" in env.metadata.get(page, {})}
        unknown -= set(now)
        return sorted(p for p in env.found_docs if p in unknown or seen.get(p) != now.get(p))

    app.connect("config-inited", clean)
    app.connect("env-get-outdated", outdated)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
