"""Errors: one line that names what was wrong, where, and the way out."""


class InfluenceError(Exception):
    """Base of every error that this package raises on purpose."""


class InfluenceValueError(InfluenceError, ValueError):
    """An argument, an image or a checkpoint has an unusable value."""


class InfluenceTypeError(InfluenceError, TypeError):
    """An argument has an unusable type."""


class InfluenceOSError(InfluenceError, OSError):
    """A file cannot be read or written."""
