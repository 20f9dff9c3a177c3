"""Pre-training with SimCLR, BYOL, Barlow Twins and with labels."""

from influence_lab.pretrain.checkpoint import Run
from influence_lab.pretrain.settings import (
    METHODS,
    PROFILES,
    Settings,
    removal_settings,
    settings_for,
)
from influence_lab.pretrain.train import pretrain, run_folder

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
