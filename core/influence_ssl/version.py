"""The version, in one place."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("influence-ssl")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "unknown"
