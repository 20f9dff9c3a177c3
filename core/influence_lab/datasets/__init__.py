"""Data sets as one array of images each, loaded by name.

=====================  ===========================================================================
``scenes``              embedded: procedural images with planted truth (:mod:`.scenes`)
``digits``              scikit-learn's bundled 8 x 8 digits
``cifar10``             real CIFAR-10, in torchvision's on-disk format or as a folder of images
``cifar100``            real CIFAR-100, likewise
``cifar100-standin``    CIFAR-10's images under 100 pseudo-classes (:mod:`.standins`)
=====================  ===========================================================================

Sets with attributes beside the labels have functions of their own: :func:`.fairface.load_fairface`,
:func:`standin_fairface`, and :func:`load_folder` for any folder, zip or CSV of images.
"""

from collections.abc import Callable

from influence_lab.datasets.base import Grouped, Images, data_root
from influence_lab.datasets.cifar import download, load_cifar10, load_cifar100
from influence_lab.datasets.digits import load_digits
from influence_lab.datasets.folder import load_folder
from influence_lab.datasets.scenes import Scenes, make_lookalikes, make_scenes
from influence_lab.datasets.standins import standin_cifar100, standin_fairface
from influence_ssl.errors import InfluenceValueError

__all__ = [
    "Grouped",
    "Images",
    "Scenes",
    "data_root",
    "download",
    "load",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_folder",
    "make_lookalikes",
    "make_scenes",
    "standin_cifar100",
    "standin_fairface",
]

_SPLIT: dict[str, Callable[[str], Images]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "cifar100-standin": standin_cifar100,
}
_WHOLE: dict[str, Callable[[], Images]] = {
    "scenes": lambda: make_scenes().images,
    "digits": load_digits,
}


def load(name: str, split: str = "train") -> Images:
    """The data set ``name`` of the table above, ``split`` train or test.

    ``scenes`` and ``digits`` have one split each, ``train``.
    """
    if split not in ("train", "test"):
        raise InfluenceValueError(f"split={split!r}: expected 'train' or 'test'")
    if name in _SPLIT:
        return _SPLIT[name](split)
    if name not in _WHOLE:
        raise InfluenceValueError(
            f"data set {name!r}: expected one of {', '.join((*_WHOLE, *_SPLIT))}"
        )
    if split != "train":
        raise InfluenceValueError(f"data set {name!r} has one split: ask for split='train'")
    return _WHOLE[name]()
