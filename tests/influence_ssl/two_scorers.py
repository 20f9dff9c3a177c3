"""What test_sharing compares: run once by it, and once by two processes that share the images."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from nets import Residual, Windows, build, images

from influence_ssl import EmpiricalFisher, ExactHessian, InfluenceError, InfluenceScorer, LoGra

SETTINGS = {
    "per layer": (Residual, LoGra(rank=3)),
    "joint": (Residual, LoGra(rank=2, joint=True)),
    "more directions than gradients": (Residual, EmpiricalFisher(1e-3)),
    "hessian": (Windows, ExactHessian(0.1)),
}


def scores(name, store=None, batch_size=4, perturbation=None):
    """Scores of 37 images under 2 draws, which two processes cannot share evenly."""
    kind, curvature = SETTINGS[name]
    settings = {"draws": 2, "batch_size": batch_size, "store": store, "progress": False}
    return InfluenceScorer(build(kind), curvature=curvature, **settings).score(images(37))


def influences(name, store=None):
    """Influence of 37 images on 8 others."""
    kind, curvature = SETTINGS[name]
    settings = {"draws": 2, "batch_size": 4, "store": store, "progress": False}
    scorer = InfluenceScorer(build(kind), curvature=curvature, **settings)
    scorer.fit(images(37), keep=True)
    return scorer.influence(images(8, seed=2))


def fitted():
    """Scores of some images under the curvature of others."""
    scorer = InfluenceScorer(build(Residual), batch_size=4, progress=False).fit(images(37))
    return scorer.score(images(5, seed=2), index=range(50, 55))


def main(folder):
    """Write what this process returned."""
    found = {name: scores(name) for name in SETTINGS}
    found |= {"fitted": fitted(), "kept": scores("joint", folder / "store")}
    traced = {name: influences(name) for name in SETTINGS}
    # Another processor may give an eigenvector the other sign.
    eigh, sign = torch.linalg.eigh, 1 - 2 * dist.get_rank()
    torch.linalg.eigh = lambda h: (lambda e, v: (e, sign * v))(*eigh(h))
    try:
        traced |= {f"{name}, turned": influences(name) for name in SETTINGS}
    finally:
        torch.linalg.eigh = eigh
    traced["stored"] = influences("joint", folder / "traced")
    kept = len(list((folder / "store").glob("*-*.safetensors")))
    try:
        InfluenceScorer(build(Windows), progress=False).score(images(1))
    except ValueError as error:
        refused = str(error)
    # The last image belongs to the second process, which alone fails.
    broken, stopped = images(37), ""
    broken[-1, 0, 0, 0] = float("nan")
    try:
        InfluenceScorer(build(Windows), progress=False, batch_size=4).score(broken)
    except InfluenceError as error:
        stopped = str(error)
    again = scores("joint").values.tolist() == found["joint"].values.tolist()
    columns = {name: (s.values, s.standard_error, s.index) for name, s in found.items()}
    found = {name: (x.values, x.index, x.queries) for name, x in traced.items()}
    result = columns, kept, refused, stopped, again, found
    torch.save(result, folder / f"rank-{dist.get_rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    Path(sys.argv[1], "store").mkdir(exist_ok=True)
    Path(sys.argv[1], "traced").mkdir(exist_ok=True)
    main(Path(sys.argv[1]))
    dist.destroy_process_group()
