"""The encoder's part of a checkpoint, on modules small enough to list what should come out."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import run, scored, small
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from influence_ssl import InfluenceError
from influence_ssl.encoders.checkpoints import read_tensors
from influence_ssl.encoders.parts import Part, find_part


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
        self.fc = nn.Identity()


def under(prefix: str, seed: int = 0, **more: Tensor) -> dict[str, Tensor]:
    state = {**Net(seed).state_dict(), **more}
    return {prefix + name: value for name, value in state.items()}


def find(state: dict[str, Tensor], module: nn.Module | None = None, **settings) -> Part:
    return find_part(Net() if module is None else module, state, "x.pt", **settings)


def taken(part: Part, state: dict[str, Tensor]) -> int:
    """With which seed the part's values were made."""
    for seed in range(2):
        values = Net(seed).state_dict()
        if all(state[part.names[name]].equal(values[name]) for name in values):
            return seed
    raise AssertionError


# What is taken (seed 0) and the momentum copy beside it (seed 1).
@pytest.mark.parametrize(
    ("network", "momentum"),
    [
        ("encoder_q.", "encoder_k."),
        ("module.encoder_query.", "module.encoder_key."),
        ("base_encoder.", "momentum_encoder."),
        ("online_encoder.net.", "target_encoder.net."),
        ("online_network.", "target_network."),
        ("backbone.", "momentum_backbone."),
        ("backbone.", "backbone_momentum."),
        ("module.visual_encoder.", "visual_encoder_m."),
    ],
)
@pytest.mark.parametrize("copy_first", [False, True])
def test_a_momentum_copy_gives_way(network: str, momentum: str, copy_first: bool) -> None:
    halves = [under(network), under(momentum, 1)]
    state = {k: v for half in halves[:: -1 if copy_first else 1] for k, v in half.items()}
    part = find(state)
    assert (part.prefix, taken(part, state)) == (network, 0)
    # Where the network is damaged, its copy is no substitute.
    damaged = {k: v for k, v in state.items() if k != f"{network}stem.weight"}
    with pytest.raises(InfluenceError, match=f"under '{network}': missing keys: stem.weight;"):
        find(damaged)
    # Asked for, it is taken; and so it is where it is alone.
    for chosen in (find(state, wanted=momentum), find(under(momentum, 1))):
        assert (chosen.prefix, taken(chosen, state)) == (momentum, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("student.", "teacher."),
        ("model.", "model_ema."),
        ("encoder.", "target_encoder."),
        ("a.", "b."),
        ("", "copy."),
    ],
)
def test_two_encoders_are_an_error_that_names_both(one: str, other: str) -> None:
    state = {**under(one), **under(other, 1)}
    with pytest.raises(InfluenceError, match=f"2 encoders .* '{one}' and '{other}'") as caught:
        find(state)
    # The way out that the message names is one.
    (way_out,) = re.findall(r"--weights-part '(.*?)'", str(caught.value))
    assert taken(find(state, wanted=way_out), state) == 1
    assert taken(find(state, wanted=one), state) == 0
    equal = {**under(one), **under(other)}
    assert find(equal).prefix == one


def test_part_of_a_name_chooses_among_what_it_begins() -> None:
    state = {**under("student.module.backbone."), **under("teacher.backbone.", 1)}
    state |= under("teacher_ema.backbone.")
    assert find(state, wanted="teacher").prefix == "teacher.backbone."
    assert find(state, wanted="teacher.backbone.").prefix == "teacher.backbone."
    with pytest.raises(InfluenceError, match=r"under --weights-part 'teach'; give 'stu"):
        find(state, wanted="teach")
    with pytest.raises(InfluenceError, match=r"under --weights-part 'a'; the file holds 'other'"):
        find({"other.name": torch.ones(2)}, wanted="a")


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_an_encoder_that_is_wrapped_itself(wrap: Callable[[nn.Module], nn.Module]) -> None:
    for prefix in ("", "module.", "backbone._orig_mod."):
        part = find(under(prefix), wrap(Net()))
        assert len(part.names) == len(Net().state_dict())


def test_a_child_called_module_is_no_wrapper() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 3)
            self.last = nn.Linear(3, 2)

    part = find(Holder().state_dict(), Holder())
    assert part.names == {name: name for name in Holder().state_dict()}
    twice = nn.ModuleDict({"a": nn.Linear(2, 2)})
    twice.a.add_module("module", nn.Linear(2, 2))
    assert find(twice.state_dict(), twice).names == {name: name for name in twice.state_dict()}


def test_numbered_children_with_their_classifier() -> None:
    net = Net()
    net.fc = nn.Linear(5, 2)
    state = nn.Sequential(*net.children()).state_dict()
    part = find({f"backbone.{name}": value for name, value in state.items()})
    assert part.names["body.0.weight"] == "backbone.2.0.weight"
    assert part.left == ["fc"]


@pytest.mark.parametrize("head", ["fc.0.weight", "projector.0.weight", "mask_token"])
def test_heads_are_left_and_named(head: str) -> None:
    part = find(under("module.", **{head: torch.ones(3)}))
    assert part.left == [head.partition(".")[0]]


def test_the_rest_of_a_classifier_is_left() -> None:
    encoder = nn.ModuleDict({"features": nn.Linear(2, 2), "classifier": nn.Sequential()})
    encoder.classifier.add_module("0", nn.Linear(2, 2))
    state = {**encoder.state_dict(), "classifier.3.weight": torch.ones(2)}
    assert find(state, encoder).left == ["classifier.3"]
    # A parameter of a layer that the encoder has belongs to the encoder.
    with pytest.raises(InfluenceError, match=r"foreign keys: classifier\.0\.scale"):
        find({**encoder.state_dict(), "classifier.0.scale": torch.ones(2)}, encoder)


@pytest.mark.parametrize(
    "name", ["norm_pre.weight", "reg_token", "body.2.weight", "body.fc.weight"]
)
def test_what_may_act_on_the_representation_is_not_left(name: str) -> None:
    with pytest.raises(InfluenceError, match=f"foreign keys: {name}"):
        find(under("", **{name: torch.ones(3)}))


def test_the_closest_part_is_described() -> None:
    state = {**under("a."), **under("b."), **under("c.")}
    for name in ("a.stem.weight", "a.stem.bias", "c.stem.bias"):
        del state[name]
    state["b.body.0.weight"] = torch.ones(5, 7)
    state["b.body.1.weight"] = torch.ones(6)
    for name in ("b.stem.weight", "b.stem.bias", "c.body.0.bias", "c.body.0.weight"):
        del state[name]
    state["a.norm.weight"] = state["a.norm.bias"] = torch.ones(2)
    state["a.body.0.bias"] = torch.ones(4)
    with pytest.raises(InfluenceError) as caught:
        find(state)
    assert str(caught.value) == (
        "--weights 'x.pt' does not fit the encoder under 'a.': other shapes or types: body.0.bias "
        "is (4,) instead of (5,); missing keys: stem.weight and 1 more; foreign keys: norm.weight "
        "and 1 more; save the state_dict of exactly this module, or load it in the encoder's "
        "function."
    )
    with pytest.raises(InfluenceError, match=r"'b\.'.* \(5, 7\) instead of \(5, 4\) and 1 more"):
        find(state, wanted="b")


def test_counters_of_batches_decide_nothing() -> None:
    state = under("")
    counter = "body.1.num_batches_tracked"
    assert find({k: v for k, v in state.items() if k != counter}).prefix == ""
    beside = {**under("x."), **under("y.")}
    beside[f"y.{counter}"] = torch.tensor(7)
    assert find(beside).prefix == "x."


def test_an_index_in_half_precision_is_refused() -> None:
    attention = ShiftedWindowAttention(8, [4, 4], [0, 0], 2)
    state = attention.state_dict()
    assert find(state, attention).prefix == ""
    halved = {name: value.half() for name, value in state.items()}
    with pytest.raises(InfluenceError, match="relative_position_index is float16 instead of int64"):
        find(halved, attention)


def test_types_of_one_family_are_converted() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert find({name: value.to(dtype) for name, value in under("a.").items()
                     if "num_batches" not in name}).prefix == "a."  # fmt: skip
    for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.complex64):
        state = under("a.")
        state["a.stem.bias"] = state["a.stem.bias"].to(dtype)
        with pytest.raises(InfluenceError, match=f"stem.bias is {str(dtype)[6:]} instead of"):
            find(state)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"w": 0}, ["w"]),
        ({"epoch": 3, "state_dict": {"a.w": 0}}, ["a.w"]),
        ({"student": {"w": 0}, "teacher": {"w": 0}}, ["student.w", "teacher.w"]),
        ({"model": {"state_dict": {"w": 0, "lr": 3}}, "best": "scalar"}, ["w", "best"]),
        ({"net": {"w": 0}, "optimizer": {"state": {0: {"exp_avg": 0}}}}, ["w"]),
        ({"net": {"w": 0}, "list": [0]}, ["w"]),
    ],
)
def test_tensors_are_named_by_their_keys(tmp_path: Path, content: dict, names: list[str]) -> None:
    def filled(part: object) -> object:
        if isinstance(part, dict):
            return {key: filled(value) for key, value in part.items()}
        if isinstance(part, list):
            return [filled(value) for value in part]
        return {0: torch.ones(2), "scalar": torch.tensor(0.5)}.get(part, part)

    torch.save(filled(content), tmp_path / "x.pt")
    assert list(read_tensors(tmp_path / "x.pt")) == names


def test_a_part_is_chosen_recorded_and_printed(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"student.{k}": v for k, v in small(1).state_dict().items()}
    state |= {f"teacher.{k}": v for k, v in small(2).state_dict().items()}
    state["teacher.projector.weight"] = torch.ones(3, 3)
    save_file(state, "both.safetensors")
    assert run("--weights", "both.safetensors") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 encoders that fit, under 'student.' and 'teacher.'" in line
    found = scored("--weights", "both.safetensors", "--weights-part", "teacher")
    printed = capsys.readouterr().out
    assert "weights: names that begin with 'teacher.' in the checkpoint\n" in printed
    assert "heads not loaded from the checkpoint: projector\n" in printed
    assert found.provenance["weights part"] == "teacher."
    assert found.provenance["weights left"] == ["projector"]
    torch.save(small(2).state_dict(), "one.pt")
    alone = scored("--weights", "one.pt")
    assert (found.values == alone.values).all()
    assert not {"weights part", "weights left"} & set(alone.provenance)


@pytest.mark.parametrize("weights", [(), ("--weights", "pretrained")])
def test_a_part_needs_a_file(
    work: Path, capsys: pytest.CaptureFixture[str], weights: tuple[str, ...]
) -> None:
    assert run(*weights, "--weights-part", "teacher") == 2
    assert "--weights-part requires --weights FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "is a folder; name a checkpoint in it"),
        ("model.safetensors.index.json", "is the index of a checkpoint in several files"),
        ("pytorch_model.bin.index.json", "is the index of a checkpoint in several files"),
        ("model-00001-of-00003.safetensors", "is one of several files of a checkpoint"),
    ],
)
def test_files_that_hold_no_whole_checkpoint(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    if name != ".":
        path.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(InfluenceError, match=message) as caught:
        read_tensors(path)
    assert str(caught.value).startswith(f"--weights '{path}'")


def test_one_file_of_one_is_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00001.safetensors"
    save_file({"w": torch.ones(2)}, path)
    assert list(read_tensors(path)) == ["w"]


def test_nothing_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "run",))

    torch.save({"state_dict": copy.deepcopy(small().state_dict()), "x": Trap()}, tmp_path / "x.pt")
    with pytest.raises(InfluenceError, match=r"besides tensors \(\S+\), which could run any code"):
        read_tensors(tmp_path / "x.pt")
    assert not (tmp_path / "run").exists()
