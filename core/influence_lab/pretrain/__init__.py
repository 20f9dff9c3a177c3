"""Pre-training with SimCLR, BYOL, Barlow Twins and with labels."""

from .settings import METHODS, PROFILES, Settings, settings_for
from .train import Run, pretrain, run_folder

__all__ = [
    "METHODS",
    "PROFILES",
    "Run",
    "Settings",
    "pretrain",
    "run_folder",
    "settings_for",
]
