"""The ``influence-lab`` command: pre-train, score, reproduce, download."""

from __future__ import annotations

from influence_ssl.starting import started  # first, as what follows takes a second

# isort: split
import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from influence_lab.experiments.catalogue import RESULTS
from influence_ssl.errors import InfluenceError

METHODS = ("simclr", "byol", "barlow", "supervised")
PROFILES = ("tiny", "cpu", "gpu", "paper")
# Seeds of epochs and workers are multiples of it, in 64 bits.
LARGEST_SEED = 10**9


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 after an error, or 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        started()
        _refuse_absent(getattr(options, "device", "cpu"))
        options.run(options)
    except InfluenceError as error:
        print(f"influence-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("influence-lab: interrupted; repeat the command to resume", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line. Its ``--help`` is the source of the reference page."""
    found = argparse.ArgumentParser(
        prog="influence-lab", formatter_class=_layout,
        description="Train and score encoders and record the results that the book shows.",
    )  # fmt: skip
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    pretrain = _command(
        commands, "pretrain", "train an encoder, measure and record it; resumes an interrupted run",
        "influence-lab pretrain simclr --profile cpu --seed 0", _pretrain,
    )  # fmt: skip
    pretrain.add_argument("method", choices=METHODS)
    score = _command(
        commands, "score", "score a data set with a recorded encoder and record the result",
        "influence-lab score simclr --profile cpu --seed 0 --split train", _score,
    )  # fmt: skip
    score.add_argument("method", choices=METHODS)
    score.add_argument("--split", choices=("train", "test"), default="train")
    score.add_argument(
        "--labels", action="store_true",
        help="score the classifier's loss, with labels, instead of the representation's",
    )  # fmt: skip
    reproduce = _command(
        commands, "reproduce", "reproduce a figure of the paper or another recorded result",
        "influence-lab reproduce fig-9 --profile tiny", _reproduce,
    )  # fmt: skip
    reproduce.add_argument("result", choices=(*RESULTS, "all"))
    reproduce.add_argument("--out", type=Path, help="file for the picture (default: RESULT.svg)")
    download = _command(
        commands, "download", "fetch a data set with torchvision into data/ or INFLUENCE_SSL_DATA",
        "influence-lab download cifar100", _download,
    )  # fmt: skip
    download.add_argument("name", choices=("cifar10", "cifar100"))
    for command in (pretrain, score, reproduce):
        command.add_argument("--profile", choices=PROFILES, default="cpu")
        command.add_argument("--seed", type=_seed, default=0)
        command.add_argument("--device", type=_device, default="cpu", help="cpu (default) or cuda")
        command.add_argument(
            "--results", type=Path, help="folder of recorded results (default: book/results)"
        )
        command.add_argument(
            "--runs", type=Path, help="folder of checkpoints (default: in the user's cache)"
        )
    return found


def _layout(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, width=99)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    purpose: str,
    example: str,
    run: Callable[[argparse.Namespace], None],
) -> argparse.ArgumentParser:
    description = purpose[0].upper() + purpose[1:] + "."
    parser = commands.add_parser(
        name, help=purpose, description=description, epilog=f"example: {example}",
        formatter_class=_layout,
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer ≥ 0")
    if int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text} is above {LARGEST_SEED:,}")
    return int(text)


def _device(text: str) -> str:
    import torch

    try:
        torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device; use cpu or cuda") from error
    return text


def _refuse_absent(device: str) -> None:
    import torch

    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InfluenceError(f"--device {device}: PyTorch finds no CUDA card; use cpu")


def _pretrain(options: argparse.Namespace) -> None:
    from influence_lab.records.recording import pretrain_and_record

    record = pretrain_and_record(
        options.method, options.profile, options.seed, options.device, runs=options.runs,
        root=options.results,
    )  # fmt: skip
    if record is None:
        return
    accuracy = record["accuracy"]
    print(
        f"{options.method}, profile {options.profile}, seed {options.seed}: "
        f"kNN {accuracy['knn']:.2%}, linear {accuracy['linear']:.2%} "
        f"on {record['test images']:,} test images"
    )


def _score(options: argparse.Namespace) -> None:
    from influence_lab.experiments.distributions import summary
    from influence_lab.records.recording import score_and_record

    recorded = score_and_record(
        options.method, options.profile, options.seed, options.split, options.device,
        root=options.results, labels=options.labels,
    )  # fmt: skip
    row = summary(recorded.magnitude)
    print(
        f"{options.method}, profile {options.profile}, seed {options.seed}: {len(recorded):,} "
        f"scores of {options.split}{', with labels' if options.labels else ''}, "
        f"ln |I| {row.mean:.2f} ± {row.std:.2f}"
    )


def _reproduce(options: argparse.Namespace) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    from influence_lab.experiments.catalogue import reproduce
    from influence_lab.experiments.task import Task

    if options.result == "all" and options.out is not None:
        raise InfluenceError("--out names the file of a single picture; leave it out with `all`")
    formats = FigureCanvasBase.get_supported_filetypes()
    if options.out is not None and options.out.suffix.removeprefix(".") not in {"", *formats}:
        raise InfluenceError(
            f"--out {str(options.out)!r}: not a picture format; use one of {', '.join(formats)}"
        )
    missing = []
    for result in RESULTS if options.result == "all" else (options.result,):
        task = Task(
            result, options.profile, options.seed, options.device, options.out, options.runs,
            options.results,
        )  # fmt: skip
        try:
            line = reproduce(task)
        except InfluenceError as error:
            # One figure's absent data must not keep the others from being made.
            if options.result != "all":
                raise
            line = f"not made: {error}"
            missing.append(result)
        print(f"{result}, profile {options.profile}: {line}", flush=True)
    if missing:
        raise InfluenceError(f"{', '.join(missing)} could not be made; the reasons are above")


def _download(options: argparse.Namespace) -> None:
    from influence_lab.datasets import download

    print(download(options.name))
