"""Layouts in which training code saves an encoder, written with small ones, and their loading."""

from __future__ import annotations

import json
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import pandas as pd
import timm
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from influence_ssl import InfluenceError
from influence_ssl.encoders.loading import load_encoder

RESNET, VIT = "timm:test_resnet", "timm:test_vit"


class Layout(NamedTuple):
    """``content``: the object for ``torch.save``, or a function that writes the file itself.

    ``encoder`` is the value of ``--encoder``, ``part`` that of ``--weights-part``.
    """

    content: Callable[[], object]
    encoder: str = RESNET
    part: str | None = None
    file: str = "checkpoint.pt"


def encoder(spec: str = RESNET, seed: int = 0, head: int = 0) -> nn.Module:
    """A small timm encoder with random weights and running statistics.

    ``seed`` 0 is the encoder in each layout, 1 the momentum network, teacher or copy beside it.
    ``head`` is the number of classes of its classifier, 0 for none.
    """
    module = timm.create_model(spec.partition(":")[2], num_classes=head)
    torch.manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            # Positive, as a variance must be.
            value.uniform_(0.5, 1.5) if "running_var" in name else value.normal_(std=0.1)
    return module


def write(name: str, folder: Path) -> Path:
    """Write a layout's file in ``folder``; returns its path."""
    layout = LAYOUTS[name]
    path = folder / layout.file
    content = layout.content()
    if callable(content) and not isinstance(content, nn.Module):
        content(path)
    else:
        torch.save(content, path)
    return path


def table(folder: Path) -> pd.DataFrame:
    """One row per layout: whether it loads, with which part and heads, or why it does not.

    Every file is written to ``folder`` and read as by ``influence-ssl score --weights``.
    """
    rows = []
    for name, layout in LAYOUTS.items():
        path = write(name, folder)
        row = {"layout": name, "loads": "yes", "part taken": "", "left, or why it is refused": ""}
        try:
            found = load_encoder(layout.encoder, str(path), part=layout.part)
            row["part taken"] = found.part or "all"
            if found.left:
                row["left, or why it is refused"] = f"left: {', '.join(found.left)}"
        except InfluenceError as error:
            row["loads"] = "no"
            message = str(error).removeprefix(f"--weights {str(path)!r} ")
            row["left, or why it is refused"] = message
        path.unlink()
        rows.append(row)
    return pd.DataFrame(rows)


def _state(spec: str = RESNET, seed: int = 0, head: int = 0) -> dict[str, Tensor]:
    return encoder(spec, seed, head).state_dict()


def _projecting(spec: str = RESNET, seed: int = 0) -> nn.Module:
    """The encoder with a projection instead of its classifier, as in MoCo and SimCLR."""
    module = encoder(spec, seed)
    width = cast(int, module.num_features)
    module.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8))
    return module


def _numbered(seed: int = 0) -> nn.Sequential:
    """The encoder's children without the classifier, as in many implementations with ResNet."""
    return nn.Sequential(*list(encoder(RESNET, seed).children())[:-1])


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))


def _under(module: nn.Module, **beside: nn.Module | Tensor) -> nn.Module:
    """``module`` with further children and buffers."""
    for name, value in beside.items():
        if isinstance(value, nn.Module):
            module.add_module(name, value)
        else:
            module.register_buffer(name, value)
    return module


def _of(**parts: nn.Module | Tensor) -> nn.Module:
    return _under(nn.Module(), **parts)


def _parallel(module: nn.Module) -> dict[str, Tensor]:
    """The names of DataParallel, which are those of DistributedDataParallel."""
    return nn.DataParallel(module).state_dict()


def _saved(state: dict[str, Tensor], key: str = "state_dict", **beside: object) -> dict:
    """The content that a training script saves: the weights under a key, and its progress."""
    weight = nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    optimiser.step()
    return {"epoch": 100, "arch": "resnet", key: state, "optimizer": optimiser.state_dict(),
            **beside}  # fmt: skip


def _lightning(module: nn.Module, **hyper_parameters: object) -> dict:
    return _saved(
        module.state_dict(),
        hyper_parameters=hyper_parameters,
        callbacks={"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
    )


def _compiled(module: nn.Module) -> nn.Module:
    # Nothing is compiled before the first call.
    return cast(nn.Module, torch.compile(module))


def _compiled_blocks() -> dict[str, Tensor]:
    module = encoder(VIT)
    blocks = module.get_submodule("blocks")
    for name, block in list(blocks.named_children()):
        blocks.add_module(name, _compiled(block))
    return module.state_dict()


def _lucidrains() -> dict[str, Tensor]:
    # One network under two names, as the learner keeps the one that it was given.
    net = encoder(RESNET, 0, 10)
    return _of(
        net=net,
        online_encoder=_of(net=net, projector=_mlp()),
        target_encoder=_of(net=encoder(RESNET, 1, 10), projector=_mlp()),
        online_predictor=_mlp(),
    ).state_dict()


def _mae() -> dict[str, Tensor]:
    width = 8
    return _under(
        encoder(VIT),
        decoder_embed=nn.Linear(width, width),
        decoder_blocks=nn.Sequential(_mlp()),
        mask_token=torch.zeros(1, 1, width),
        decoder_pos_embed=torch.zeros(1, 5, width),
    ).state_dict()


def _dino() -> dict:
    student = _of(backbone=encoder(VIT, 0), head=_mlp())
    teacher = _of(backbone=encoder(VIT, 1), head=_mlp())
    return {
        "student": _parallel(student),
        "teacher": teacher.state_dict(),
        "epoch": 100,
        "dino_loss": {"center": torch.zeros(1, 8)},
    }


def _dinov2() -> dict:
    backbone = _under(encoder(VIT), mask_token=torch.zeros(1, 8))
    return {"teacher": _of(backbone=backbone, dino_head=_mlp()).state_dict()}


def _converted(convert: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {
        name: convert(value) if value.is_floating_point() else value
        for name, value in _parallel(encoder()).items()
    }


def _safetensors() -> Callable[[Path], None]:
    from safetensors.torch import save_file

    state = _of(backbone=encoder(), projector=_mlp()).state_dict()
    return lambda path: save_file(state, path)


def _torchscript() -> Callable[[Path], None]:
    def save(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(nn.Linear(3, 4)), path)

    return save


def _index() -> Callable[[Path], None]:
    index = {"weight_map": dict.fromkeys(_state(), "model-00001-of-00002.safetensors")}

    def save(path: Path) -> None:
        path.write_text(json.dumps(index))

    return save


def _quantised() -> dict[str, Tensor]:
    module = nn.Sequential(nn.Linear(3, 4))
    with warnings.catch_warnings():
        # Deprecated, but what old files were made with.
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}).state_dict()


LAYOUTS: dict[str, Layout] = {
    "state_dict alone": Layout(lambda: _state()),
    "state_dict with a classifier": Layout(lambda: _state(head=10)),
    "under state_dict, with optimiser": Layout(lambda: _saved(_state(head=10))),
    "under model_state_dict": Layout(lambda: _saved(_state(head=10), "model_state_dict")),
    "under net, DataParallel": Layout(lambda: _saved(_parallel(encoder()), "net")),
    "DistributedDataParallel": Layout(lambda: _saved(_parallel(encoder(head=10)))),
    "torch.compile": Layout(lambda: _compiled(encoder()).state_dict()),
    "torch.compile of each block": Layout(_compiled_blocks, VIT),
    "DistributedDataParallel of torch.compile": Layout(
        lambda: _saved(_parallel(_compiled(encoder())))
    ),
    "torch.compile of DistributedDataParallel": Layout(
        lambda: _compiled(nn.DataParallel(encoder())).state_dict()
    ),
    "averaged weights (AveragedModel)": Layout(lambda: AveragedModel(encoder()).state_dict()),
    "SimCLR (Lightning, model.)": Layout(lambda: _lightning(_of(model=_projecting()), lr=0.1)),
    "SimCLR (backbone. with projection)": Layout(
        lambda: _saved(_of(backbone=_projecting()).state_dict())
    ),
    "SupCon": Layout(
        lambda: _saved(_of(encoder=nn.DataParallel(encoder()), head=_mlp()).state_dict(), "model")
    ),
    "MoCo v1 and v2": Layout(
        lambda: _saved(
            _parallel(
                _of(
                    encoder_q=_projecting(),
                    encoder_k=_projecting(seed=1),
                    queue=torch.zeros(8, 16),
                    queue_ptr=torch.zeros(1, dtype=torch.int64),
                )
            )
        )
    ),
    "MoCo v3": Layout(
        lambda: _saved(
            _parallel(
                _of(
                    base_encoder=_projecting(),
                    momentum_encoder=_projecting(seed=1),
                    predictor=_mlp(),
                )
            )
        )
    ),
    "SimSiam": Layout(lambda: _saved(_parallel(_of(encoder=_projecting(), predictor=_mlp())))),
    "BYOL (online_encoder.net.)": Layout(_lucidrains),
    "BYOL (online_network, target_network)": Layout(
        lambda: {
            "online_network_state_dict": _of(encoder=_numbered(), projection=_mlp()).state_dict(),
            "target_network_state_dict": _of(encoder=_numbered(1), projection=_mlp()).state_dict(),
        }
    ),
    "Barlow Twins, VICReg": Layout(
        lambda: _saved(_parallel(_of(backbone=encoder(), projector=_mlp())), "model")
    ),
    "SwAV": Layout(
        lambda: _saved(
            _parallel(_under(encoder(), projection_head=_mlp(), prototypes=nn.Linear(8, 3)))
        )
    ),
    "DINO": Layout(_dino, VIT),
    "DINO, --weights-part student": Layout(_dino, VIT, "student"),
    "DINOv2 (teacher alone)": Layout(_dinov2, VIT),
    "MAE": Layout(lambda: _saved(_mae(), "model"), VIT),
    "I-JEPA (encoder, target_encoder)": Layout(
        lambda: {
            "encoder": _parallel(encoder(VIT)),
            "predictor": _parallel(_mlp()),
            "target_encoder": _parallel(encoder(VIT, 1)),
        },
        VIT,
    ),
    "solo-learn": Layout(
        lambda: _lightning(
            _of(backbone=encoder(), momentum_backbone=encoder(seed=1), projector=_mlp())
        )
    ),
    "solo-learn before 2022": Layout(
        lambda: _lightning(_of(encoder=encoder(), momentum_encoder=encoder(seed=1)))
    ),
    "lightly, SimCLR": Layout(
        lambda: _lightning(_of(backbone=_numbered(), projection_head=_of(layers=_mlp())))
    ),
    "lightly, BYOL": Layout(
        lambda: _lightning(
            _of(
                backbone=_numbered(),
                backbone_momentum=_numbered(1),
                projection_head=_of(layers=_mlp()),
            )
        )
    ),
    "MMSelfSup": Layout(lambda: _saved(_of(backbone=encoder(), neck=_mlp()).state_dict())),
    "weights beside their average (timm)": Layout(
        lambda: _saved(_state(), state_dict_ema=_state(seed=1))
    ),
    "weights beside an equal average": Layout(
        lambda: _saved(_state(), "model", model_ema=_state())
    ),
    ".safetensors, backbone.": Layout(_safetensors, file="checkpoint.safetensors"),
    "half precision": Layout(lambda: _converted(Tensor.half)),
    "bfloat16": Layout(lambda: _converted(Tensor.bfloat16)),
    "int8 weights": Layout(lambda: _converted(lambda value: (value * 100).to(torch.int8))),
    "quantised layers": Layout(_quantised),
    "an encoder with further blocks": Layout(
        lambda: {**_state(VIT), "blocks.9.norm1.weight": torch.ones(64)}, VIT
    ),
    "a network of other names": Layout(lambda: _of(embedder=_mlp(), stages=_mlp()).state_dict()),
    "beside its arguments (Namespace)": Layout(lambda: _saved(_state(), args=Namespace(lr=0.1))),
    "a module instead of its state_dict": Layout(lambda: nn.Sequential(nn.Linear(3, 4))),
    "TorchScript": Layout(_torchscript),
    "index of several files": Layout(_index, file="model.safetensors.index.json"),
    "one of several files": Layout(lambda: _state(), file="pytorch_model-00001-of-00002.bin"),
    "an optimiser alone": Layout(lambda: {"optimizer": _saved({})["optimizer"]}),
}
