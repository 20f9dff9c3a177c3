"""Errors: one line that names what was wrong, where, and the way out."""


class InfluenceError(Exception):
    """Base of every error that this package raises on purpose."""


class InfluenceValueError(InfluenceError, ValueError):
    """An argument, an image or a checkpoint has an unusable value."""


class InfluenceTypeError(InfluenceError, TypeError):
    """An argument has an unusable type."""


class InfluenceOSError(InfluenceError, OSError):
    """A file cannot be read or written."""


def one_line(error: BaseException) -> str:
    """An error's message without line breaks and final stop."""
    return " ".join(str(error).split()).rstrip(".")


def described(error: BaseException) -> str:
    """An error's type and message on one line."""
    return f"{type(error).__name__}: {one_line(error)}"
