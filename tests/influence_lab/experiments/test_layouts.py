"""Checkpoints in the layouts of published trainings against the encoder they were made from."""

import re
from pathlib import Path

import pytest
import torch
from lightly.models.modules import BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad
from torch import nn
from torchvision.models import resnet18

from influence_lab.experiments import layouts
from influence_ssl import InfluenceError
from influence_ssl.encoders.loading import load_encoder

# The part that is taken, and the heads that are left beside it.
TAKEN = {
    "state_dict alone": ("", ()),
    "state_dict with a classifier": ("", ("fc",)),
    "under state_dict, with optimiser": ("", ("fc",)),
    "under model_state_dict": ("", ("fc",)),
    "under net, DataParallel": ("module.", ()),
    "DistributedDataParallel": ("module.", ("fc",)),
    "torch.compile": ("_orig_mod.", ()),
    "torch.compile of each block": ("", ()),
    "DistributedDataParallel of torch.compile": ("module._orig_mod.", ()),
    "torch.compile of DistributedDataParallel": ("_orig_mod.module.", ()),
    "averaged weights (AveragedModel)": ("module.", ()),
    "SimCLR (Lightning, model.)": ("model.", ("fc",)),
    "SimCLR (backbone. with projection)": ("backbone.", ("fc",)),
    "SupCon": ("encoder.module.", ()),
    "MoCo v1 and v2": ("module.encoder_q.", ("fc",)),
    "MoCo v3": ("module.base_encoder.", ("fc",)),
    "SimSiam": ("module.encoder.", ("fc",)),
    "BYOL (online_encoder.net.)": ("net.", ("fc",)),
    "BYOL (online_network, target_network)": ("online_network_state_dict.encoder.", ()),
    "Barlow Twins, VICReg": ("module.backbone.", ()),
    "SwAV": ("module.", ("projection_head", "prototypes")),
    "DINO, --weights-part student": ("student.module.backbone.", ()),
    "DINOv2 (teacher alone)": ("backbone.", ("mask_token",)),
    "MAE": ("", ("mask_token", "decoder_pos_embed", "decoder_embed", "decoder_blocks")),
    "solo-learn": ("backbone.", ()),
    "solo-learn before 2022": ("encoder.", ()),
    "lightly, SimCLR": ("backbone.", ()),
    "lightly, BYOL": ("backbone.", ()),
    "MMSelfSup": ("backbone.", ()),
    "weights beside an equal average": ("model.", ()),
    ".safetensors, backbone.": ("backbone.", ()),
    "half precision": ("module.", ()),
    "bfloat16": ("module.", ()),
}

REFUSED = {
    "DINO": r"2 encoders that fit, under 'student.module.backbone.' and 'teacher.backbone.'; "
    r"choose one, .* --weights-part 'teacher.backbone'\.",
    "I-JEPA (encoder, target_encoder)": "under 'encoder.module.' and 'target_encoder.module.'",
    "weights beside their average (timm)": "under 'state_dict.' and 'state_dict_ema.'",
    "int8 weights": r"under 'module.': other shapes or types: conv1.0.weight is int8 instead of "
    r"float32 and \d+ more; give the checkpoint from before the quantisation",
    "quantised layers": "quantised layers, .* from before the quantisation",
    "an encoder with further blocks": "foreign keys: blocks.9.norm1.weight;",
    "a network of other names": "no name in it ends like one of the encoder's, such as 'conv1.0",
    "beside its arguments (Namespace)": r"Python objects besides tensors \(argparse.Namespace\)",
    "a module instead of its state_dict": r"besides tensors \(torch.nn.modules.container.Sequenti",
    "TorchScript": "is a TorchScript archive, .* torch.jit.load",
    "index of several files": "is the index of a checkpoint in several files; join them",
    "one of several files": "is one of several files of a checkpoint; join them",
    "an optimiser alone": "no tensor with a name",
}


def load(name: str, folder: Path):
    layout = layouts.LAYOUTS[name]
    chosen = {} if layout.part is None else {"part": layout.part}
    return load_encoder(layout.encoder, str(layouts.write(name, folder)), **chosen)


def same(found: nn.Module, expected: nn.Module) -> None:
    """Bit for bit the same weights, running statistics and outputs."""
    ours, theirs = found.state_dict(), expected.state_dict()
    for name, value in theirs.items():
        if "num_batches" not in name:
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0, msg=name)
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        z = found.eval()(x)
        torch.testing.assert_close(z, expected.eval()(x), rtol=0, atol=0)
    assert z.std() > 0


def test_each_layout_has_its_expectation():
    assert {*TAKEN, *REFUSED} == set(layouts.LAYOUTS)
    assert not set(TAKEN) & set(REFUSED)
    assert len(layouts.LAYOUTS) > 31


@pytest.mark.parametrize("name", TAKEN)
def test_the_encoder_in_each_layout_is_found(name, tmp_path):
    found = load(name, tmp_path)
    expected = layouts.encoder(layouts.LAYOUTS[name].encoder)
    if name == "half precision":
        expected = expected.half().float()
    if name == "bfloat16":
        expected = expected.bfloat16().float()
    same(found.module, expected)
    assert (found.part, found.left) == TAKEN[name]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_line_that_names_the_cause(name, tmp_path):
    with pytest.raises(InfluenceError, match=REFUSED[name]) as caught:
        load(name, tmp_path)
    assert str(caught.value).startswith(f"--weights '{tmp_path}")
    assert "\n" not in str(caught.value)


def test_the_table_says_the_same(tmp_path, monkeypatch):
    """A few rows of each kind: what the file of each layout gives is tested above."""
    few = {"state_dict alone", "MoCo v3", "SwAV", "DINO", "int8 weights", "an optimiser alone"}
    shown = {name: layout for name, layout in layouts.LAYOUTS.items() if name in few}
    monkeypatch.setattr(layouts, "LAYOUTS", shown)
    table = layouts.table(tmp_path).set_index("layout")
    assert list(table.index) == list(shown)
    for name, row in table.iterrows():
        part, left = TAKEN.get(name, ("", ()))
        assert row["loads"] == ("yes" if name in TAKEN else "no")
        assert row["part taken"] == (part or ("all" if name in TAKEN else ""))
        said = f"left: {', '.join(left)}" if left else REFUSED.get(name, "^$")
        assert re.search(said, row["left, or why it is refused"])
    assert not list(tmp_path.iterdir())


class LightlyBYOL(nn.Module):
    """lightly's own example of BYOL, without the training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = resnet18()
        self.backbone = nn.Sequential(*list(self.network.children())[:-1])
        self.projection_head = BYOLProjectionHead(512, 32, 16)
        self.backbone_momentum = nn.Sequential(*list(resnet18().children())[:-1])
        deactivate_requires_grad(self.backbone_momentum)


def test_lightlys_backbone_is_found_by_the_order_of_its_children(tmp_path):
    training = LightlyBYOL()
    network = training.network
    del training.network
    torch.save({"state_dict": training.state_dict()}, tmp_path / "byol.ckpt")
    found = load_encoder("torchvision:resnet18", str(tmp_path / "byol.ckpt"))
    assert found.part == "backbone."
    network.fc = nn.Identity()
    same(found.module, network)
