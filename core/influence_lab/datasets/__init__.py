"""Data sets as one array of images each, loaded by name.

==========  =====================================================================================
``scenes``   embedded: procedural images with planted truth (:mod:`.scenes`)
``digits``   scikit-learn's bundled 8 x 8 digits
``cifar10``  real CIFAR-10, in torchvision's on-disk format or as a folder of images
==========  =====================================================================================
"""

from .base import Images, data_root
from .cifar import load_cifar10
from .digits import load_digits
from .scenes import Scenes, make_lookalikes, make_scenes

__all__ = [
    "Images", "Scenes", "data_root", "load", "load_cifar10", "load_digits", "make_lookalikes",
    "make_scenes",
]  # fmt: skip


def load(name: str, split: str = "train") -> Images:
    """The data set ``name`` (``scenes``, ``digits``, ``cifar10``), ``split`` train or test.

    ``scenes`` and ``digits`` have one split each, ``train``.
    """
    from influence_ssl.errors import InfluenceValueError

    if split not in ("train", "test"):
        raise InfluenceValueError(f"split={split!r}: expected 'train' or 'test'")
    if name == "cifar10":
        return load_cifar10(split)
    if name not in ("scenes", "digits"):
        raise InfluenceValueError(f"data set {name!r}: expected one of scenes, digits, cifar10")
    if split != "train":
        raise InfluenceValueError(f"data set {name!r} has one split: ask for split='train'")
    return make_scenes().images if name == "scenes" else load_digits()
