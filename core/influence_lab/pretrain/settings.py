"""The settings of every method and profile, as data.

``TABLE_1``, ``TABLE_2`` and ``TABLE_3`` hold the paper's tables; profile ``paper`` is made from
them, and the other profiles state what they change.

Table 1 was printed without its row names. Twelve values stand in it: 0.8, 0.8, 0.8, 0.2, 0.8, 0.2,
0.5, 0.2, 0.2, 32, 0.08, 1.0. solo-learn's command line asks for exactly twelve, and its order
(brightness, contrast, saturation, hue; probabilities of jitter, grey, flip, blur and solarisation;
crop size, least and greatest scale) gives each a value of a usual size, so these are the names.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from influence_ssl.errors import InfluenceValueError

METHODS = ("simclr", "byol", "barlow", "supervised")
PROFILES = ("tiny", "cpu", "gpu", "paper")

TABLE_1: dict[str, float] = {
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
    "jitter": 0.8,
    "grey": 0.2,
    "flip": 0.5,
    "blur": 0.2,
    "solarise": 0.2,
    "crop": 32,
    "least_scale": 0.08,
    "greatest_scale": 1.0,
}

_COMMON_2 = {"epochs": 1000, "batch": 256, "eta": 0.02, "warmup": 10, "start_lr": 0.003,
             "momentum": 0.9}  # fmt: skip
TABLE_2: dict[str, dict[str, Any]] = {
    "simclr": {**_COMMON_2, "hidden": 2048, "output": 256, "lr": 0.4, "weight_decay": 1e-5,
               "temperature": 0.2, "classifier_lr": 0.1},
    "byol": {**_COMMON_2, "hidden": 4096, "output": 256, "lr": 1.0, "weight_decay": 1e-5,
             "classifier_lr": 0.1},
    "barlow": {**_COMMON_2, "hidden": 2048, "output": 2048, "lr": 0.3, "weight_decay": 1e-4,
               "classifier_lr": 0.3},
}  # fmt: skip

FAIRFACE_SIZES = {"tiny": 32, "cpu": 32, "gpu": 64, "paper": 224}

# For a classifier that solo-learn trains on the encoder's features without changing them.
WITHOUT_EFFECT = ("classifier_lr",)

_COMMON_3 = {"epochs": 250, "batch": 512, "eta": 0.02, "warmup": 10, "momentum": 0.9}
TABLE_3: dict[str, dict[str, Any]] = {
    "simclr": {**_COMMON_3, "hidden": 2048, "output": 256, "lr": 0.4, "weight_decay": 1e-4,
               "temperature": 0.2},
    "byol": {**_COMMON_3, "hidden": 2048, "output": 256, "lr": 0.35, "weight_decay": 3e-5,
             "temperature": 0.2},
    "barlow": {**_COMMON_3, "hidden": 2048, "output": 512, "lr": 0.35, "weight_decay": 3e-5,
               "temperature": 0.1},
}  # fmt: skip


@dataclass(frozen=True)
class Augmentation:
    """Strengths and probabilities of one view's augmentation; see :mod:`.augment`."""

    crop: int = 32
    least_scale: float = 0.08
    greatest_scale: float = 1.0
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grey: float = 0.2
    blur: float = 0.2
    solarise: float = 0.2


@dataclass(frozen=True)
class Settings:
    """Everything that determines a pre-training, except the seed.

    ``lr`` is per 256 examples, as in solo-learn: the rate is ``lr * batch / 256``. ``tau`` is
    BYOL's momentum at the start, raised to 1 along a cosine. ``optimiser`` is ``"lars"`` (with
    ``clip`` as in :class:`.optim.LARS`), ``"sgd"`` (with Nesterov momentum) or ``"adamw"``. Epochs
    and warm-up are in epochs. ``bf16`` asks for bfloat16 where the device computes in it. ``stem``
    is a key of :data:`..encoders.STEMS`.
    """

    method: str
    profile: str
    width: int
    epochs: int
    batch: int
    lr: float
    weight_decay: float
    warmup: float
    start_lr: float = 0.003
    momentum: float = 0.9
    optimiser: str = "lars"
    eta: float = 0.02
    clip: bool = False
    hidden: int = 2048
    output: int = 256
    temperature: float = 0.2
    tau: float = 0.99
    off_diagonal: float = 0.0051
    loss_scale: float = 1.0
    bf16: bool = True
    stem: str = "cifar"
    augmentation: Augmentation = field(default_factory=Augmentation)


# Labelled training sees most of the image, mirrored or not, in its own colours.
_LABELLED = Augmentation(
    least_scale=0.6, jitter=0.0, grey=0.0, blur=0.0, solarise=0.0,
)  # fmt: skip

# What the paper leaves open. Supervised: none of the tables has it; SGD as for CIFAR ResNets.
# Barlow Twins: solo-learn multiplies the loss by 0.1, which LARS does not see but biases and
# normalisation do; the "loss temperature" of 0.1 in Table 3 can only be that factor. The clip of
# LARS is set in all of solo-learn's CIFAR-10 recipes, whose values Table 2 repeats.
_PAPER: dict[str, Settings] = {
    method: Settings(
        method=method, profile="paper", width=64, clip=True,
        **{name: value for name, value in table.items() if name not in WITHOUT_EFFECT},
    )
    for method, table in TABLE_2.items()
}  # fmt: skip
_PAPER["barlow"] = replace(_PAPER["barlow"], loss_scale=0.1)
_PAPER["supervised"] = Settings(
    method="supervised", profile="paper", width=64, epochs=200, batch=256, lr=0.1,
    weight_decay=5e-4, warmup=5, optimiser="sgd", augmentation=_LABELLED,
)  # fmt: skip

# Two cores: a quarter of the width and few epochs, without labels on crops of 24 pixels, which is
# 44 % less work. A crop enlarges what it shows: with half the area on average, a crop of 24 pixels
# shows objects about as large as the whole 32-pixel image does when features are extracted.
# With labels, whole images and 30 epochs: smaller crops and fewer epochs were less accurate.
#
# BYOL and Barlow Twins: the jitter of solo-learn's CIFAR-10 recipes for these two, which is weaker
# than Table 1's. Under LARS, and under SGD at LARS's rates, the gains and biases of normalisation,
# which get the full rate, grew to 5 to 15 within 400 steps, and the features stayed in about two
# directions. Barlow Twins: AdamW; stronger decorrelation (0.0204 instead of 0.0051) was worse.
# BYOL: SGD at a rate of 0.06 with crops of at least a fifth of the image; AdamW was worse. Both
# learn more slowly than SimCLR, as the recorded curves show: hence more epochs. SimCLR's rate was
# chosen for LARS without the clip, which divides the rate out of many steps.
_WEAK = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "blur": 0.0,
         "solarise": 0.1}  # fmt: skip
_ADAMW = {"batch": 128, "optimiser": "adamw", "lr": 0.003, "weight_decay": 0.01}
_SGD = {"batch": 128, "optimiser": "sgd", "lr": 0.12, "weight_decay": 5e-4, "least_scale": 0.2}
_CPU: dict[str, dict[str, Any]] = {
    "simclr": {"crop": 24, "epochs": 20, "hidden": 512, "output": 128},
    "byol": {"crop": 20, "epochs": 30, "hidden": 1024, "output": 256, **_SGD, **_WEAK},
    "barlow": {"crop": 20, "epochs": 40, "hidden": 512, "output": 512, **_ADAMW, **_WEAK},
    "supervised": {"epochs": 30, "batch": 128, "lr": 0.2},
}


def removal_settings(method: str) -> Settings:
    """Table 3, the training of the removal experiment; all else is as in profile paper."""
    return replace(_PAPER[method], **TABLE_3[method])


def fairface_settings(profile: str) -> Settings:
    """Section 4.5: BYOL on FairFace, 200 epochs; all else is as in Table 2.

    The section states neither the image size nor the network. Profile ``paper`` takes FairFace's
    own 224 pixels and torchvision's stem, ``gpu`` 64 pixels and 30 epochs; ``cpu`` and ``tiny`` are
    those of :func:`settings_for`. :data:`FAIRFACE_SIZES` gives the width of the images.
    """
    settings = settings_for("byol", profile)
    size = FAIRFACE_SIZES[profile]
    if profile == "paper":
        large = replace(settings.augmentation, crop=size)
        return replace(settings, epochs=200, stem="large", augmentation=large)
    if profile == "gpu":
        return replace(settings, epochs=30, augmentation=replace(settings.augmentation, crop=size))
    return settings


def settings_for(method: str, profile: str) -> Settings:
    """The settings of ``method`` (one of :data:`METHODS`) in ``profile`` (of :data:`PROFILES`).

    Profile ``paper`` is Table 2, ``gpu`` is Table 3 with fewer epochs.
    """
    if method not in METHODS:
        raise InfluenceValueError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    if profile not in PROFILES:
        raise InfluenceValueError(f"profile {profile!r}: expected one of {', '.join(PROFILES)}")
    paper = _PAPER[method]
    if profile == "paper":
        return paper
    augmentation = paper.augmentation
    if profile == "gpu":
        if method == "supervised":
            return replace(paper, profile="gpu", epochs=30)
        return replace(removal_settings(method), profile="gpu", epochs=60)
    if profile == "cpu":
        changes = _CPU[method]
        views = {name: value for name, value in changes.items() if name in asdict(augmentation)}
        others = {name: value for name, value in changes.items() if name not in views}
        return replace(
            paper, profile="cpu", width=16, warmup=1, start_lr=0.0, clip=False,
            augmentation=replace(augmentation, **views), **others,
        )  # fmt: skip
    return replace(
        paper, profile="tiny", width=4, epochs=2, batch=32, warmup=0.5, start_lr=0.0, hidden=32,
        output=16, bf16=False, augmentation=replace(augmentation, crop=16),
    )  # fmt: skip
