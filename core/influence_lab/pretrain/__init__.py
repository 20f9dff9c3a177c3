"""Pre-training with SimCLR, BYOL, Barlow Twins and with labels."""

from .checkpoint import Run
from .settings import METHODS, PROFILES, Settings, removal_settings, settings_for
from .train import pretrain, run_folder

__all__ = [
    "METHODS",
    "PROFILES",
    "Run",
    "Settings",
    "pretrain",
    "removal_settings",
    "run_folder",
    "settings_for",
]
