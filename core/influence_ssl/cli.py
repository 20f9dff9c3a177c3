"""The ``influence-ssl`` command."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from influence_ssl.curvature import Curvature, EmpiricalFisher, Identity, LoGra, Relative
from influence_ssl.errors import InfluenceError, InfluenceOSError, InfluenceValueError
from influence_ssl.report.loading import described, import_function, load_encoder
from influence_ssl.objectives import Invariance
from influence_ssl.perturbations import GaussianNoise
from influence_ssl.scorer import InfluenceScorer
from influence_ssl.scores import Scores

if TYPE_CHECKING:
    from influence_ssl.images import Images

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
_NEEDS = {".npz": (), ".csv": ("pandas",), ".parquet": ("pandas", "pyarrow")}
_LISTED = 20

_EXAMPLE = """\
example: influence-ssl score --data photos --encoder mine.py:encoder --weights mine.safetensors \\
                             --out scores.parquet
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 2 after an error (one line on stderr), or 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("influence-ssl: interrupted before the scores were written", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            traceback.print_exc()
        print(f"influence-ssl: error: {_message(error)}", file=sys.stderr)
        return 2
    return 0


def score(options: argparse.Namespace) -> None:
    """``influence-ssl score``: images in, a file of scores out."""
    # Before the long work: everything that can be refused is refused first.
    perturbation, curvature = _perturbation(options), _curvature(options)
    device = _device(options.device)
    _check_output(options.out)
    encoder, preprocess, _ = load_encoder(options.encoder, options.weights, options.seed)

    from influence_ssl.images import Images

    # Pillow warns of odd metadata; what makes an image unreadable is an error and gets listed.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    started, progress = time.monotonic(), sys.stderr.isatty()
    images = Images(options.data, preprocess).readable(options.strict, progress)
    if len(images) < 2:
        raise InfluenceValueError(
            f"{str(options.data)!r} holds one readable image; scores compare images, give two or "
            "more."
        )
    scorer = InfluenceScorer(
        encoder,
        Invariance(perturbation),
        curvature,
        draws=options.draws,
        seed=options.seed,
        batch_size=options.batch_size,
        device=device,
        dtype=_DTYPES.get(options.dtype),
        progress=progress,
    )
    try:
        scores = scorer.score(images, index=images.index.tolist(), names=images.names)
    except InfluenceError as error:
        raise InfluenceError(_with_names(str(error), images)) from error
    if not np.isfinite(scores.values).all():
        first = images.names[int(np.flatnonzero(~np.isfinite(scores.values))[0])]
        raise InfluenceValueError(
            f"the score of {first!r} is not finite; try --dtype float64 or more --damping."
        )
    scores.provenance.update(_provenance(options, images))
    scores.save(options.out)
    _summarise(scores, images, options.out, time.monotonic() - started)


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


def _device(name: str | None) -> torch.device | None:
    if name is None:
        return torch.device("cuda") if torch.cuda.is_available() else None
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InfluenceValueError(
            f"--device {name!r} cannot be used here: {str(error).splitlines()[0].rstrip('.')}; "
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


def _provenance(options: argparse.Namespace, images: Images) -> dict[str, Any]:
    content = hashlib.sha256()
    for name, digest in zip(images.names, images.sha256, strict=True):
        content.update(f"{digest} {name}\n".encode())
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
            "sha256": content.hexdigest(),
            "skipped": [list(skipped) for skipped in images.skipped],
            "other files": images.ignored,
        },
        "packages": {},
    }
    if options.weights is not None:
        found["weights sha256"] = hashlib.sha256(options.weights.read_bytes()).hexdigest()
    for package in ("influence-ssl", "torch", "torchvision", "timm", "numpy", "pillow"):
        try:
            found["packages"][package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _summarise(scores: Scores, images: Images, out: Path, seconds: float) -> None:
    # A terminal that cannot show a name must not fail after hours of work.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    size = " x ".join(map(str, images.shape or ()))
    took = timedelta(seconds=round(seconds))
    print(f"{len(scores)} images ({size}) scored on {scores.provenance['device']} in {took}")
    if images.ignored:
        print(f"{images.ignored} files without an image's extension left out")
    if images.skipped:
        print(f"{len(images.skipped)} skipped, as they cannot be read:")
        for name, reason in images.skipped[:_LISTED]:
            print(f"  {name}: {reason}")
        if len(images.skipped) > _LISTED:
            print(f"  and {len(images.skipped) - _LISTED} more, all listed in the provenance")
    print("score = -g'(H + damping)^-1 g <= 0: the more negative, the higher the influence")
    shown = min(3, len(scores) // 2)
    for which in ("highest", "lowest"):
        for row in scores.order(which)[:shown]:
            print(f"  {which:7}  {scores.values[row]:12.6g}  {images.names[row]}")
    print(f"written to {out}")


def _with_names(message: str, images: Images) -> str:
    """The core knows an image by its index; a user knows it by its path."""
    names = dict(zip(images.index.tolist(), images.names, strict=True))
    return re.sub(
        r"\bimage (\d+)\b",
        lambda found: f"image {names.get(int(found[1]), found[1])!r}",
        message,
    )


def _message(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory; give a smaller --batch-size or a lower --rank."
    if isinstance(error, InfluenceError | ImportError):
        return _one_line(str(error))
    return f"{described(error)}; --traceback shows where."


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _damping(text: str) -> float | Relative:
    number = text.removeprefix("relative:")
    try:
        value = float(number)
    except ValueError as error:
        raise InfluenceValueError(
            f"--damping {text!r}: give a number, or relative:C such as relative:0.1."
        ) from error
    return value if number == text else Relative(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"influence-ssl: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("influence-ssl", description="Label-free influence of images on an encoder.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def layout(prog: str) -> argparse.HelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=99)

    about = "Score every image by its influence on the encoder's own representation of it."
    command = commands.add_parser(
        "score",
        help="score images",
        description=about,
        epilog=_EXAMPLE,
        formatter_class=layout,
        usage="influence-ssl score --data PATH --encoder SPEC --out FILE [options]",
    )

    def add(flag: str, metavar: str, text: str, **settings: Any) -> None:
        command.add_argument(flag, metavar=metavar, help=text, **settings)

    def switch(flag: str, text: str) -> None:
        command.add_argument(flag, action="store_true", help=text)

    add("--data", "PATH", "folder, zip, or CSV with a column 'path'", type=Path, required=True)
    add(
        "--encoder",
        "SPEC",
        "package.module:function or file.py:function that returns a module, or a pair (module, "
        "preprocess); without preprocess it receives RGB in [0, 1]",
        required=True,
    )
    add("--weights", "FILE", "its weights: .safetensors, or a saved state_dict", type=Path)
    add("--out", "FILE", ".parquet, .csv or .npz", type=Path, required=True)
    add("--noise-mean", "X", "mean of the Gaussian noise that perturbs (0.05)", type=float)
    add("--noise-std", "X", "its standard deviation (0.2)", type=float)
    add("--perturbation", "SPEC", "instead: your function (x, index, draw, seed) -> perturbed x")
    add(
        "--curvature",
        "NAME",
        "logra (default), fisher (exact, small encoders) or identity (gradient norm)",
        choices=("logra", "fisher", "identity"),
        default="logra",
    )
    add("--rank", "R", "of logra's projections, in each layer (16)", type=int)
    add(
        "--damping",
        "L",
        "relative:C, C times the mean eigenvalue (relative:0.1), or the number itself",
    )
    add("--draws", "N", "perturbations of each image (1)", type=int, default=1)
    add("--seed", "N", "of noise, projections and untrained weights (0)", type=int, default=0)
    add("--batch-size", "N", "changes speed, not scores (256)", type=int, default=256)
    add("--dtype", "TYPE", "float64, float32 or bfloat16 (the encoder's own)", choices=_DTYPES)
    add("--device", "NAME", "cpu, cuda, cuda:1, ... (cuda where there is one)")
    switch("--strict", "stop at an unreadable image instead of skipping it")
    switch("--traceback", "after an error, also show where it arose")
    command.set_defaults(run=score)
    return parser


if __name__ == "__main__":
    sys.exit(main())
