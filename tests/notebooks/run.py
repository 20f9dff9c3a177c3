"""Run chapters on every core, by nbval: ``make book``, ``make chapter NAME=...`` and ``make test``.

Without an option, those chapters run whose outputs the cache does not have or has from other code.
With ``--judge`` all of them run, or those that are named, and nbval compares their outputs with the
references.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from jupyter_cache import get_cache

from reference import ROOT, chapters, executed

sys.path.insert(0, str(ROOT / "book" / "_ext"))

from freshcache import CACHE, drop_outdated

SECONDS = 300
"""What a cell may take."""


def main(arguments: list[str] | None = None) -> int:
    """Run the chapters; pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", action="store_true", help="compare with the references")
    parser.add_argument("names", nargs="*", help="chapters, such as theory/noise; all by default")
    given = parser.parse_args(arguments)

    known = {name_of(path): path for path in chapters()}
    for name in given.names:
        if name not in known:
            print(f"There is no chapter {name!r}; name one of: {' '.join(known)}", file=sys.stderr)
            return 2
    wanted = [known[name] for name in given.names or known]
    if not given.judge:
        drop_outdated(ROOT, get_cache(str(ROOT / CACHE)))
        wanted = [path for path in wanted if not has_outputs(path)]
    if not wanted:
        return 0

    options = ["--nbval" if given.judge else "--nbval-lax", "--nbval-current-env"]
    options += [f"--nbval-cell-timeout={SECONDS}", f"--rootdir={ROOT}"]
    processes = min(len(wanted), os.cpu_count() or 1)
    if processes > 1:
        options += ["-n", str(processes), "--dist", "loadfile"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, wanted)]
    # One thread each, so that numbers do not depend on the cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def name_of(chapter: Path) -> str:
    """``theory/noise`` for ``book/theory/noise.md``."""
    return chapter.relative_to(ROOT / "book").with_suffix("").as_posix()


def has_outputs(chapter: Path) -> bool:
    """Whether the cache has the chapter as it stands."""
    try:
        executed(chapter)
    except KeyError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
