"""Errors: one line that says what is wrong, where, and what to do."""

import os
from pathlib import Path


class InfluenceError(Exception):
    """Base class of every error that this package raises on purpose.

    The text is one line of printable characters, even if it quotes file names or contents. It holds
    no line break, no terminal escape sequence and no mark that reverses the writing direction.
    """

    def __str__(self) -> str:
        lines = super().__str__().splitlines()
        return printable(" ".join(line.strip() for line in lines))


class InfluenceValueError(InfluenceError, ValueError):
    """An argument, an image or a checkpoint has an unusable value."""


class InfluenceTypeError(InfluenceError, TypeError):
    """An argument has an unusable type."""


class InfluenceOSError(InfluenceError, OSError):
    """A file cannot be read or written."""


def path_of(value: object, named: str) -> Path:
    """A path that a caller gave. Raises for what is none; ``named`` is the argument."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise InfluenceTypeError(f"{named}={value!r:.60} must be a path, as a string or a Path.")
    return Path(value)


def printable(text: str) -> str:
    """The text with every unprintable character written out, such as ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, other control characters or a final full stop."""
    return printable(" ".join(str(error).split())).rstrip(".")


def described(error: BaseException) -> str:
    """An error's type and message on one line."""
    return f"{type(error).__name__}: {one_line(error)}"
