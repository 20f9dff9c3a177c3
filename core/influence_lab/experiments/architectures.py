"""Tests the scorer on many architectures against brute force, one image at a time.

The smallest model of each module of timm and the named ones of torchvision, with random weights in
double precision and at the smallest image size that they accept. The reference shares only the
projections with the scorer. It projects autograd's weight gradients of one image at a time and
computes the quadratic forms of their second moment. Models are recorded one by one, and recorded
ones are skipped.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from influence_lab.experiments.task import Task
from influence_lab.records import results
from influence_ssl import GaussianNoise, InfluenceScorer, Invariance, LoGra, Relative
from influence_ssl.curvature import Gradients, Layer
from influence_ssl.errors import InfluenceError

TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_v2_t", "vgg11_bn", "vit_b_16",
)  # fmt: skip
SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 240, 256, 299, 336, 384, 448, 512)
IMAGES = 3
DAMPING = 0.1
CURVATURE = LoGra(rank=4, joint=True, damping=Relative(DAMPING))
# The largest error that counts as right, in double precision and with single inside.
DOUBLE, SINGLE = 1e-8, 1e-4


class _NoRandomWeights(TorchFunctionMode):
    """Leaves out the random initialisation, which takes most of the time of building a model."""

    SKIPPED = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.erfinv_})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func in self.SKIPPED else func(*args, **(kwargs or {}))


def smallest(module: str) -> tuple[str, int]:
    """The model with the fewest parameters in one of timm's modules, and their number."""
    import timm

    found = []
    for name in timm.list_models(module=module):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
        except (RuntimeError, NotImplementedError):  # it asks for values while it is built
            with _NoRandomWeights():
                model = timm.create_model(name, pretrained=False)
        found.append((sum(p.numel() for p in model.parameters()), name))
    count, name = min(found)
    return name, count


def timm_models(name: str) -> Iterator[tuple[int, nn.Module]]:
    """(image size, the model for it), from the smallest size; classifiers are left out."""
    import timm

    plain = None
    for size in SIZES:
        torch.manual_seed(0)
        try:
            yield size, timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
        except TypeError:  # its size is in no argument
            if plain is None:
                torch.manual_seed(0)
                plain = timm.create_model(name, pretrained=False, num_classes=0)
            yield size, plain
        except (AssertionError, ValueError, RuntimeError, ZeroDivisionError):
            continue


def torchvision_models(name: str) -> Iterator[tuple[int, nn.Module]]:
    """The same for torchvision."""
    from influence_ssl.encoders.zoo import from_zoo

    named = from_zoo(f"torchvision:{name}", False, 0)
    assert named is not None
    yield from ((size, named.module) for size in SIZES)


def accepted(models: Iterator[tuple[int, nn.Module]]) -> tuple[int, nn.Module] | None:
    """The first candidate that maps images to finite vectors, in double precision and eval mode."""
    for size, model in models:
        model.double().eval()
        try:
            with torch.no_grad():
                z = model(torch.rand(2, 3, size, size, dtype=torch.float64))
        except Exception:  # models may raise anything for images that are too small
            continue
        if isinstance(z, Tensor) and z.ndim == 2 and bool(z.isfinite().all()) and z.shape[1] > 1:
            return size, model
    return None


def brute_force(
    model: nn.Module, x: Tensor, x_hat: Tensor, names: list[str]
) -> list[tuple[Tensor | None, ...]]:
    """Autograd's gradients of 1 − cos for the named modules' weights, image by image.

    An image and its copy form one batch, because for a single row of LeViT, PyTorch's gradients
    differ from finite differences.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    weights = [modules[name].weight for name in names]
    model.requires_grad_(True)
    rows: list[tuple[Tensor | None, ...]] = []
    for clean, noisy in zip(x, x_hat, strict=True):
        z, moved = (v / v.norm() for v in model(torch.stack([clean, noisy])))
        loss = 0.5 * (z - moved).square().sum()
        rows.append(torch.autograd.grad(loss, weights, allow_unused=True))
    return rows


def quadratic_forms(g: Float64[np.ndarray, "n k"], c: float) -> Float64[np.ndarray, " n"]:
    """gᵀ(GᵀG/n + λI)⁻¹g of each row, λ being c times the mean of min(n, k) eigenvalues."""
    n, k = g.shape
    gram = g @ g.T / n
    λ = c * np.trace(gram) / min(n, k)
    return n * np.diag(np.linalg.solve(gram + λ * np.eye(n), gram))


class _Kept:
    """A curvature that also keeps the layers and gradients on which it is fitted."""

    def project(self, layers: list[Layer]) -> None:
        CURVATURE.project(layers)

    def fit(self, gradients: Gradients) -> Callable[[Tensor], Tensor]:
        self.layers, self.rows = gradients.layers, [*gradients]
        return CURVATURE.fit(gradients)


def compared(model: nn.Module, size: int) -> dict[str, Any]:
    """Number of layers, seconds of a call, and the largest relative errors, or the message."""
    x = torch.rand(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(1))
    x = x.double()
    noise = GaussianNoise(0.05, 0.2)
    curvature = _Kept()
    scorer = InfluenceScorer(model, Invariance(noise), curvature, progress=False)
    begin = time.perf_counter()
    try:
        scores = scorer.score(x)
        seconds = time.perf_counter() - begin
    except InfluenceError as error:
        return {"message": str(error)}
    except Exception as error:  # unexpected errors are recorded, too
        return {"crash": f"{type(error).__name__}: {str(error).splitlines()[0]:.200}"}
    found, layers = torch.cat(curvature.rows).numpy(), curvature.layers
    rows = brute_force(model, x, noise(x, torch.arange(IMAGES), 0, 0), [x.name for x in layers])
    reference = np.stack([
        torch.cat([
            torch.zeros(layer.size) if g is None else layer.project(g).flatten()
            for layer, g in zip(layers, row, strict=True)
        ]).numpy()
        for row in rows
    ])  # fmt: skip
    expected = quadratic_forms(reference, DAMPING)
    off = np.linalg.norm(found - reference, axis=1) / np.linalg.norm(reference, axis=1)
    return {
        "layers": len(layers),
        "gradient error": float(f"{off.max():.2g}"),
        "error": float(f"{np.abs(scores.magnitude / expected - 1).max():.2g}"),
        "seconds": round(seconds, 2),
    }


def checked(source: str, name: str) -> dict[str, Any]:
    """The row of one model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = timm_models(name) if source == "timm" else torchvision_models(name)
        found = accepted(models)
        if found is None:
            return {"name": name, "message": "maps images of none of the sizes to one vector each"}
        size, model = found
        parameters = sum(p.numel() for p in model.parameters())
        return {"name": name, "size": size, "parameters": parameters, **compared(model, size)}


def right(row: dict[str, Any]) -> bool:
    """Whether a model's scores agree with brute force, or a message says why there are none."""
    return row.get("error", 1.0) <= SINGLE or "message" in row


def path_of(profile: str, root: Path | None = None) -> Path:
    """Where the rows are recorded."""
    return (root or results.results_root()) / profile / "architectures.json"


def keys(profile: str) -> list[str]:
    """The recorded models: modules of timm, models of torchvision; one of each for profile tiny."""
    import timm

    if profile == "tiny":
        return ["timm.starnet", "torchvision.squeezenet1_1"]
    # Of a module with many models the smallest takes longest to find.
    modules = sorted(timm.list_modules(), key=lambda m: len(timm.list_models(module=m)))
    return [*(f"torchvision.{name}" for name in TORCHVISION), *(f"timm.{m}" for m in modules)]


def reproduce(task: Task) -> str:
    """Check every model that is not recorded yet; record after each."""
    path = path_of(task.profile, task.root)
    record = results.load_record(task.profile, "architectures", task.root) or {"models": {}}
    rows, begin = record["models"], time.perf_counter()
    wanted = keys(task.profile)
    record["of"] = len(wanted)
    for key in wanted:
        if key in rows:
            continue
        source, name = key.split(".")
        row = checked(source, smallest(name)[0] if source == "timm" else name)
        rows[key] = row
        record["provenance"] = results.provenance(
            task.command, task.profile, task.seed, f"{IMAGES} images of noise", "", "cpu",
            record.get("provenance", {}).get("wall_seconds", 0) + time.perf_counter() - begin,
        )  # fmt: skip
        begin = time.perf_counter()
        results.save_json(path, record)
        if sys.stderr.isatty():
            print(key, row, file=sys.stderr)
    return summary(rows)


def summary(rows: dict[str, dict[str, Any]]) -> str:
    """The numbers of right, refused and wrong models, in one line."""
    found = list(rows.values())
    double = [row["error"] for row in found if row.get("error", 1.0) <= DOUBLE]
    single = [row["error"] for row in found if DOUBLE < row.get("error", 1.0) <= SINGLE]
    refused = [row["name"] for row in found if "message" in row]
    wrong = [row["name"] for row in found if not right(row)]
    return (
        f"of {len(found)} models {len(double)} are right to {DOUBLE:g} and {len(single)} to "
        f"{SINGLE:g}; refused: {', '.join(refused) or 'none'}; wrong: {', '.join(wrong) or 'none'}"
    )


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line per model: image size, layers, largest relative error, seconds, or the message."""
    width = max(len(row["name"]) for row in rows.values())
    lines = [f"{'model':{width}}  size  layers    error  seconds"]
    for row in rows.values():
        if "error" in row:
            numbers = f"{row['layers']:6}  {row['error']:7.0e}  {row['seconds']:7.1f}"
        else:
            numbers = row.get("message", row.get("crash", ""))
        lines.append(f"{row['name']:{width}}  {row.get('size', ''):4}  {numbers}")
    return "\n".join(lines)
