"""The recorded encoder of the experiments on the influence of images on others."""

from __future__ import annotations

from influence_lab.experiments.task import Task
from influence_lab.pretrain.resnets import CifarResNet18, representation
from influence_lab.records import results
from influence_ssl.errors import InfluenceValueError

METHOD = "simclr"


def encoder_of(task: Task) -> CifarResNet18:
    """The recorded SimCLR encoder of the profile."""
    found = results.load_encoder(task.profile, METHOD, task.seed, task.root)
    if found is None:
        raise InfluenceValueError(
            f"{task.profile}/{METHOD}-{task.seed}: no recorded encoder; first run influence-lab "
            f"pretrain {METHOD} --profile {task.profile} --seed {task.seed}"
        )
    return representation(found)
