"""Note which of the project's files this Python, and every Python that it starts, runs or reads.

Python imports a module of this name when it starts. The folder is on the path of a chapter's kernel
only; ``CHAPTER_TRACE`` names the file to write to. The packages are noted wherever they stand.
"""

import os
import sys


def _watch(log, root):
    seen = set()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)

    def note(event, arguments):
        if event == "exec":
            path = getattr(arguments[0], "co_filename", None)
        elif event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            path = arguments[0]
        else:
            return
        if not isinstance(path, str) or path in seen:
            return
        seen.add(path)
        try:
            whole = os.path.abspath(path)
        except OSError:  # the working directory is gone
            return
        if whole.startswith(root) or f"{os.sep}influence_" in whole:
            os.write(descriptor, (whole.removeprefix(root) + "\n").encode())

    sys.addaudithook(note)


if "CHAPTER_TRACE" in os.environ:
    _watch(
        os.environ["CHAPTER_TRACE"],
        os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3)) + os.sep,
    )
