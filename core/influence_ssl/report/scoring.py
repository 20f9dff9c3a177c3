"""``influence-ssl score``: images in, a file of scores and their rivals out."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from influence_ssl.curvature import Curvature, EmpiricalFisher, Identity, LoGra, Relative
from influence_ssl.errors import InfluenceError, InfluenceOSError, InfluenceValueError
from influence_ssl.objectives import Invariance
from influence_ssl.perturbations import GaussianNoise
from influence_ssl.provenance import made_with
from influence_ssl.report.loading import described, import_function, load_encoder, source_code
from influence_ssl.report.rivals import Group, duplicate_groups, nearest
from influence_ssl.report.sources import counted, refuse_overwriting
from influence_ssl.report.statistics import reliability
from influence_ssl.scorer import InfluenceScorer
from influence_ssl.scores import Scores

if TYPE_CHECKING:
    import pandas

    from influence_ssl.images import Images

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
_NEEDS = {".npz": (), ".csv": ("pandas",), ".parquet": ("pandas", "pyarrow")}
_LISTED = 20
_NOT_THE_ENCODER = (OSError, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True, eq=False)
class Scored(Scores):
    """Scores with all the columns that the command writes."""

    columns: dict[str, Any] | None = None

    def to_pandas(self) -> pandas.DataFrame:
        """The columns of a score file, in their order."""
        table = super().to_pandas()
        for name, values in (self.columns or {}).items():
            table[name] = values
        first = ["index", "name", "sha256"]
        return table[first + [name for name in table if name not in first]]


def score(options: argparse.Namespace) -> None:
    """Run the command; raises :class:`InfluenceError`, keeps what is done if it is stopped."""
    # Before the long work: everything that can be refused is refused first.
    perturbation, curvature = _perturbation(options), _curvature(options)
    device = _device(options.device)
    refuse_overwriting("--out", options.out, [options.data, Path(options.weights or ".")])
    _check_output(options.out)
    loaded = load_encoder(options.encoder, options.weights, options.seed, options.weights_part)

    from influence_ssl.images import Images

    # Pillow warns of odd metadata; what makes an image unreadable is an error and gets listed.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    started, progress = time.monotonic(), sys.stderr.isatty()
    images = Images(options.data, loaded.preprocess).readable(options.strict, progress)
    _refuse_too_few(images)
    store = partial_folder(options.out) / _key(options, loaded.module, images, device)
    scorer = InfluenceScorer(
        loaded.module,
        Invariance(perturbation),
        curvature,
        draws=options.draws,
        seed=options.seed,
        batch_size=options.batch_size,
        device=device,
        dtype=DTYPES.get(options.dtype),
        layers=None if options.layers is None else options.layers.split(","),
        progress=progress,
        store=store,
    )
    _make(store)
    try:
        scores = scorer.score(images, images.index.tolist(), images.names, representations=True)
    except BaseException as error:
        begun = not _remove_if_empty(store, store.parent)
        if isinstance(error, InfluenceError):
            raise InfluenceError(_with_names(str(error), images)) from error
        if begun or not isinstance(error, Exception) or isinstance(error, _NOT_THE_ENCODER):
            raise
        raise InfluenceValueError(
            f"the encoder fails at the first images ({_size(images)}): {described(error)}; where "
            "it needs another size, let its function return (module, preprocess); --traceback "
            "shows where."
        ) from error
    if not np.isfinite(scores.values).all():
        first = images.names[int(np.flatnonzero(~np.isfinite(scores.values))[0])]
        raise InfluenceValueError(
            f"the score of {first!r} is not finite; try --dtype float64 or more --damping."
        )
    assert scores.representations is not None
    assert scores.per_draw is not None
    z = torch.from_numpy(scores.representations).to(scores.provenance["device"])
    groups = duplicate_groups(z, images.thumbnails, images.sha256, progress)
    stable = reliability(scores.per_draw)
    scores.provenance.update(
        _provenance(options, images),
        untrained=loaded.untrained,
        reliability=stable,
        **{"duplicate groups": [group._asdict() for group in groups]},
        **({"weights part": loaded.part} if loaded.part else {}),
        **({"weights left": list(loaded.left)} if loaded.left else {}),
    )
    columns = _columns(scores, images, z, groups)
    # What a file of scores holds are the columns; representations are large, and made again.
    Scored(**vars(replace(scores, representations=None)), columns=columns).save(options.out)
    shutil.rmtree(store, ignore_errors=True)
    _remove_if_empty(store.parent)
    _summarise(scores, images, options, time.monotonic() - started, groups)


def partial_folder(out: Path) -> Path:
    """Where unfinished work is kept until ``out`` is written."""
    return out.with_name(out.name + ".partial")


def _columns(scores: Scores, images: Images, z: Tensor, groups: list[Group]) -> dict[str, Any]:
    n = len(scores)
    rank = np.empty(n, np.int64)
    rank[scores.order("highest")] = np.arange(1, n + 1)
    neighbours = nearest(z)
    group: list[int | None] = [None] * n
    for number, found in enumerate(groups):
        for member in found.members:
            group[member] = number
    columns: dict[str, Any] = {
        "sha256": list(images.sha256),
        "rank": rank,
        "percentile": 100 * (n - rank) / (n - 1),
        "loss": scores.loss,
        "gradient_norm": scores.gradient_norm,
        "nearest": [images.names[i] for i in neighbours.nearest],
        "similarity": neighbours.similarity.astype(np.float64),
    }
    if importlib.util.find_spec("pandas") is not None:
        import pandas

        columns["duplicate_group"] = pandas.array(group, dtype="Int64")
    return columns


def _refuse_too_few(images: Images) -> None:
    if len(images) < 2:
        raise InfluenceValueError(
            f"{str(images.source)!r} holds one readable image; scores compare images, give two or "
            "more."
        )
    # Thumbnails are quick to compare; only where they agree are all pixels read.
    if all((other == images.thumbnails[0]).all() for other in images.thumbnails) and all(
        torch.equal(images[0][0], images[i][0]) for i in range(1, len(images))
    ):
        raise InfluenceValueError(
            f"all {len(images)} images in {str(images.source)!r} are copies of "
            f"{images.names[0]!r}; scores compare images, give different ones."
        )


def _key(
    options: argparse.Namespace, encoder: nn.Module, images: Images, device: torch.device | None
) -> str:
    """A name for everything that the gradients depend on."""
    given = {
        name: str(value)
        for name, value in vars(options).items()
        if name not in ("run", "command", "traceback", "strict", "out", "device")
    }
    content = hashlib.sha256(json.dumps([given, str(device), made_with()["versions"]]).encode())
    for name, tensor in encoder.state_dict().items():
        if isinstance(tensor, Tensor):
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(_bytes(tensor))
    # A function's code may have changed between two runs of the same command.
    for part in (options.encoder, options.perturbation):
        if part is not None and not part.startswith(("timm:", "torchvision:")):
            content.update(source_code(part))
    content.update(_digest(images).encode())
    content.update(_bytes(images[0][0]))
    return content.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _make(store: Path) -> None:
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfluenceOSError(
            f"{str(store)!r}, for unfinished work, cannot be made: {error.strerror}."
        ) from error


def _remove_if_empty(*folders: Path) -> bool:
    """Remove the folders up to one that holds something; whether the first one went."""
    for number, folder in enumerate(folders):
        try:
            folder.rmdir()
        except OSError:
            return number > 0
    return True


def _perturbation(options: argparse.Namespace) -> Callable[..., Tensor]:
    noise = {"mean": options.noise_mean, "std": options.noise_std}
    given = {name: value for name, value in noise.items() if value is not None}
    if options.perturbation is None:
        return GaussianNoise(**given)
    if given:
        raise InfluenceValueError(
            "--noise-mean and --noise-std belong to the Gaussian noise; leave them out with "
            "--perturbation."
        )
    return import_function(options.perturbation, "--perturbation")


def _curvature(options: argparse.Namespace) -> Curvature:
    damping: dict[str, Any] = (
        {} if options.damping is None else {"damping": _damping(options.damping)}
    )
    rank = {} if options.rank is None else {"rank": options.rank}
    if rank and options.curvature != "logra":
        raise InfluenceValueError(f"--rank belongs to logra; {options.curvature} has none.")
    if options.curvature == "logra":
        return LoGra(**rank, **damping, seed=options.seed)
    if options.curvature == "fisher":
        return EmpiricalFisher(**damping)
    if damping:
        raise InfluenceValueError("--damping: identity has no curvature to damp; leave it out.")
    return Identity()


def _damping(text: str) -> float | Relative:
    number = text.removeprefix("relative:")
    try:
        value = float(number)
    except ValueError as error:
        raise InfluenceValueError(
            f"--damping {text!r}: give a number, or relative:C such as relative:0.1."
        ) from error
    return value if number == text else Relative(value)


def _device(name: str | None) -> torch.device | None:
    if name is None:
        return torch.device("cuda") if torch.cuda.is_available() else None
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InfluenceValueError(
            f"--device {name!r} cannot be used here: {str(error).splitlines()[0].split('. ')[0]}; "
            "leave it out or give cpu."
        ) from error
    return torch.device(name)


def _check_output(path: Path) -> None:
    if path.suffix not in _NEEDS:
        raise InfluenceValueError(f"--out {str(path)!r} must end in {', '.join(_NEEDS)}.")
    for package in _NEEDS[path.suffix]:
        if importlib.util.find_spec(package) is None:
            raise InfluenceValueError(
                f"--out {str(path)!r} needs {package}; pip install 'influence-ssl[report]', or "
                "write .npz."
            )
    if path.is_dir():
        raise InfluenceOSError(f"--out {str(path)!r} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise InfluenceOSError(f"--out {str(path)!r}: {str(path.parent)!r} is no folder; make it.")
    try:
        tempfile.NamedTemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InfluenceOSError(
            f"--out {str(path)!r} cannot be written: {error.strerror}; choose another folder."
        ) from error


def _digest(images: Images) -> str:
    lines = (f"{x} {name}\n" for name, x in zip(images.names, images.sha256, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _provenance(options: argparse.Namespace, images: Images) -> dict[str, Any]:
    found: dict[str, Any] = {
        "arguments": {
            name.replace("_", "-"): value if isinstance(value, int | float) else str(value)
            for name, value in vars(options).items()
            if value is not None and name not in ("run", "command", "traceback")
        },
        "data": {
            "source": str(images.source),
            "images": len(images),
            "shape": list(images.shape or ()),
            "sha256": _digest(images),
            "skipped": [list(skipped) for skipped in images.skipped],
            "other files": images.ignored,
            "converted": images.converted,
        },
    }
    if options.weights not in (None, "pretrained"):
        found["weights sha256"] = hashlib.sha256(Path(options.weights).read_bytes()).hexdigest()
    return found


def _summarise(
    scores: Scores,
    images: Images,
    options: argparse.Namespace,
    seconds: float,
    groups: list[Group],
) -> None:
    found = scores.provenance
    took = timedelta(seconds=round(seconds))
    print(f"{len(scores)} images ({_size(images)}) scored on {found['device']} in {took}")
    print(f"cost: {options.draws} x forward and backward over each image and its copy")
    if found["untrained"]:
        print(f"untrained: random weights from seed {options.seed}, as --weights was not given")
    if "weights part" in found:
        print(f"weights: those that begin with {found['weights part']!r} in the checkpoint")
    if "weights left" in found:
        print(f"heads left in the checkpoint: {', '.join(found['weights left'])}")
    if images.converted:
        print(f"converted to RGB of 8 bits: {counted(images.converted)}")
    if images.ignored:
        print(f"left out by their names: {counted(images.ignored)}")
    if images.skipped:
        print(f"{len(images.skipped)} skipped, as they cannot be read:")
        for name, reason in images.skipped[:_LISTED]:
            print(f"  {name}: {reason}")
        if len(images.skipped) > _LISTED:
            print(f"  and {len(images.skipped) - _LISTED} more, all listed in the provenance")
    hidden = [name for name in found["left out"] if not name.endswith("bias")]
    print(f"weights of {len(found['layers'])} layers make the score; {_left_out(hidden)}")
    print("score = -g'(H + damping)^-1 g <= 0: the more negative, the higher the influence")
    shown = min(3, len(scores) // 2)
    for which in ("highest", "lowest"):
        for row in scores.order(which)[:shown]:
            print(f"  {which:7}  {scores.values[row]:12.6g}  {images.names[row]}")
    inside = sum(len(group.members) for group in groups)
    print(f"likely duplicates: {inside} images in {len(groups)} groups")
    if found["reliability"] is None:
        why = "with one draw; --draws 2 or more estimates it"
        print(f"reliability: not estimated {why if options.draws < 2 else 'from equal scores'}")
    else:
        print(
            f"reliability: {found['reliability']:.3f}, the rank correlation expected of another "
            f"run of {options.draws} draws"
        )
    if (others := partial_folder(options.out)).is_dir():
        print(f"unfinished work of other settings is kept in {others}; remove what is of no use")
    print(f"written to {options.out}")


def _size(images: Images) -> str:
    return " x ".join(map(str, images.shape or ()))


def _left_out(names: list[str]) -> str:
    if not names:
        return "left out: biases alone"
    # One line for a hundred blocks: numbers in names are the blocks'.
    kinds = list(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in names))
    rest = f" and {len(kinds) - 4} more kinds" if len(kinds) > 4 else ""
    return f"left out, besides biases: {', '.join(kinds[:4])}{rest} (all in the provenance)"


def _with_names(message: str, images: Images) -> str:
    """The core knows an image by its index; a user knows it by its path."""
    names = dict(zip(images.index.tolist(), images.names, strict=True))
    return re.sub(r"\bimage (\d+)\b", lambda m: f"image {names.get(int(m[1]), m[1])!r}", message)
