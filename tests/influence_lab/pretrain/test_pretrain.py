"""Pre-training: deterministic, resumable, and its parts against references."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import torchvision.transforms.v2.functional as vision

from influence_lab.datasets import make_scenes
from influence_lab.pretrain import (
    METHODS,
    PROFILES,
    methods,
    pretrain,
    removal_settings,
    settings_for,
)
from influence_lab.pretrain import train as training
from influence_lab.pretrain.augment import _blur, augment, random_resized_crop, turn_hue
from influence_lab.pretrain.methods import build
from influence_lab.pretrain.optim import LARS
from influence_lab.pretrain.resnets import (
    cifar_preprocess,
    cifar_resnet18,
    cifar_slim,
    normalise,
    representation,
)
from influence_lab.pretrain.settings import (
    TABLE_1,
    TABLE_2,
    TABLE_3,
    WITHOUT_EFFECT,
    Augmentation,
)
from influence_ssl import InfluenceError


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(96, 0).images, make_scenes(40, 1).images


def train(method, folder, scenes, seed=0, **how):
    return pretrain(settings_for(method, "tiny"), seed, *scenes, folder, progress=False, **how)


def same(a, b):
    left, right = a.method.state_dict(), b.method.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_weights_and_resume_changes_nothing(method, tmp_path, scenes):
    torch.manual_seed(1)
    whole = train(method, tmp_path / "whole", scenes)
    torch.manual_seed(2)
    half = train(method, tmp_path / "half", scenes, stop_after=1)
    assert not half.done
    assert not same(whole, half)
    resumed = train(method, tmp_path / "half", scenes)
    assert resumed.done
    assert same(whole, resumed)
    assert [e["loss"] for e in whole.epochs] == [e["loss"] for e in resumed.epochs]
    assert not same(whole, train(method, tmp_path / "other", scenes, seed=1))


def test_a_finished_run_is_loaded_not_trained(tmp_path, scenes):
    first = train("simclr", tmp_path, scenes)
    written = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    assert same(first, train("simclr", tmp_path, scenes))
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == written


@pytest.mark.parametrize("method", METHODS)
def test_learning_lowers_the_loss(method, tmp_path, scenes):
    alike = Augmentation(16, 0.8, jitter=0, grey=0, blur=0, solarise=0)
    settings = dataclasses.replace(settings_for(method, "tiny"), epochs=12, augmentation=alike)
    run = pretrain(settings, 0, *scenes, tmp_path, progress=False)
    losses = [epoch["loss"] for epoch in run.epochs]
    assert losses[-1] < 0.95 * losses[0]
    # log 63 is the loss of representations that tell no example from another.
    assert method != "simclr" or losses[-1] < math.log(63) - 0.3


def test_a_checkpoint_of_other_settings_seed_or_data_is_refused(tmp_path, scenes):
    train("simclr", tmp_path, scenes, stop_after=1)
    with pytest.raises(InfluenceError, match="made with other seed"):
        train("simclr", tmp_path, scenes, seed=1)
    with pytest.raises(InfluenceError, match="made with other settings"):
        train("barlow", tmp_path, scenes)
    with pytest.raises(InfluenceError, match="made with other data"):
        train("simclr", tmp_path, (make_scenes(96, 5).images, scenes[1]))


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, scenes, content):
    path = tmp_path / "checkpoint.pt"
    if content is None:
        torch.save({"method": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InfluenceError, match=r"checkpoint.pt: not a checkpoint"):
        train("simclr", tmp_path, scenes)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from influence_lab.cli import main
from influence_lab.pretrain.resnets import cifar_resnet18
from influence_lab.records.results import save_encoder
from influence_ssl import InfluenceError
from test_pretrain import make_scenes, train

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for case in sys.argv[2:]:
    what, limit = case.split("-")
    folder = Path(sys.argv[1], case)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
    try:
        if what == "encoder":
            save_encoder(cifar_resnet18(8), folder / "encoder.safetensors")
        else:
            train("simclr", folder, (make_scenes(96, 0).images, make_scenes(40, 1).images))
    except InfluenceError as error:
        print(error, flush=True)
    else:
        print("written", flush=True)
"""
CASES = ("checkpoint-1000", "checkpoint-100000", "encoder-60000")


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory, scenes):
    """Of each case the files before and after, and what a process says that may write no more."""
    root = tmp_path_factory.mktemp("full")
    for case in CASES:
        if case.startswith("checkpoint"):
            train("simclr", root / case, scenes, stop_after=1)
        else:
            (root / case).mkdir()
            (root / case / "encoder.safetensors").write_bytes(b"earlier")

    def files(case):
        return {path.name: path.read_bytes() for path in (root / case).iterdir()}

    before = {case: files(case) for case in CASES}
    arguments = [sys.executable, "-c", FULL_DISK, str(root), *CASES]
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = dict(zip(CASES, done.stdout.splitlines(), strict=True))
    return {case: (before[case], files(case), said[case]) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_a_disk_that_fills_up_loses_nothing_that_was_there(full_disk, case):
    """A process that may write no more than so many bytes per file."""
    before, after, said = full_disk[case]
    what, limit = case.split("-")
    name = "checkpoint.pt" if what == "checkpoint" else "encoder.safetensors"
    assert what == "encoder" or len(before[name]) > int(limit)
    assert re.fullmatch(rf".*{name}' cannot be written .*free space.*", said), said
    assert after == before


def test_fewer_images_than_a_batch(tmp_path):
    few = make_scenes(20).images
    with pytest.raises(InfluenceError, match="20 training images, fewer than one batch of 32"):
        pretrain(settings_for("simclr", "tiny"), 0, few, few, tmp_path, progress=False)


def test_a_diverged_loss_is_an_error_and_keeps_the_last_checkpoint(tmp_path, scenes):
    settings = dataclasses.replace(settings_for("supervised", "tiny"), lr=1e30)
    with pytest.raises(InfluenceError, match="lower the learning rate"):
        pretrain(settings, 0, *scenes, tmp_path, progress=False)


def test_byol_moves_its_target_by_the_momentum_alone():
    method = build(settings_for("byol", "tiny"), 4, 0)
    with torch.no_grad():
        for p in method.online.parameters():
            p.add_(1.0)
    before = [p.clone() for p in method.target.parameters()]
    method.after_step(0.9)
    for old, new in zip(before, method.target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
    x = torch.randn(8, 3, 16, 16)
    method.loss([x, x + 0.1], torch.zeros(8)).backward()
    assert all(p.grad is None for p in method.target.parameters())
    assert all(p.grad is not None for p in method.predictor.parameters())


def test_the_target_s_momentum_goes_from_tau_to_one(tmp_path, scenes, monkeypatch):
    """Grill and others (2020): 1 − (1 − τ) (cos(π k / K) + 1) / 2 at step k of K."""
    seen = []
    monkeypatch.setattr(methods.BYOL, "after_step", lambda self, tau: seen.append(tau))
    train("byol", tmp_path, scenes)
    tau, steps = settings_for("byol", "tiny").tau, len(seen)
    assert steps == 3 * settings_for("byol", "tiny").epochs
    expected = [1 - (1 - tau) * (math.cos(math.pi * k / steps) + 1) / 2 for k in range(steps)]
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_gains_and_biases_do_not_decay(optimiser):
    """One step without any gradient moves what decays and nothing else."""
    settings = dataclasses.replace(
        settings_for("simclr", "tiny"), optimiser=optimiser, weight_decay=0.1, lr=0.5
    )
    method = build(settings, 4, 0)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    for p in method.parameters():
        p.grad = torch.zeros_like(p)
    training._optimiser(method, settings).step()
    for name, p in method.named_parameters():
        if before[name].any():
            assert torch.equal(p, before[name]) == (p.ndim == 1), name


def taken(settings, table):
    return {name: getattr(settings, name) for name in table if name not in WITHOUT_EFFECT}


def test_profiles_take_the_papers_tables():
    for method in TABLE_2:
        paper, removal = settings_for(method, "paper"), removal_settings(method)
        assert taken(paper, TABLE_2[method]).items() <= TABLE_2[method].items()
        assert set(TABLE_2[method]) - set(taken(paper, TABLE_2[method])) == {"classifier_lr"}
        assert taken(removal, TABLE_3[method]) == TABLE_3[method]
        few = settings_for(method, "gpu")
        assert few == dataclasses.replace(removal, profile="gpu", epochs=60)
        for settings in (paper, removal, few):
            assert dataclasses.asdict(settings.augmentation) == TABLE_1
            assert settings.width == 64
            assert settings.clip
            assert settings.bf16
    assert removal_settings("barlow").loss_scale == TABLE_3["barlow"]["temperature"]
    assert {settings_for(m, p).profile for m in METHODS for p in PROFILES} == set(PROFILES)
    with pytest.raises(InfluenceError, match="method 'moco'"):
        settings_for("moco", "cpu")
    with pytest.raises(InfluenceError, match="profile 'huge'"):
        settings_for("byol", "huge")


@pytest.mark.parametrize("method", TABLE_2)
def test_what_the_tables_say_is_what_is_trained_with(method, tmp_path, monkeypatch):
    """The tables' values where they act, on a narrow encoder and one step an epoch."""
    table = TABLE_2[method]
    with torch.device("meta"):
        full = build(settings_for(method, "paper"), 4, 0)
    heads = [m for m in full.projector if isinstance(m, torch.nn.Linear)]
    assert heads[0].in_features == 512
    assert {m.out_features for m in heads[:-1]} == {table["hidden"]}
    assert heads[-1].out_features == table["output"]
    if method == "byol":
        sizes = [m.weight.shape for m in full.predictor if isinstance(m, torch.nn.Linear)]
        assert sizes == [(table["hidden"], table["output"]), (table["output"], table["hidden"])]
    seen, views, losses = [], [], []
    monkeypatch.setattr(
        LARS, "step", lambda self: seen.append((self.clip, dict(self.param_groups[0])))
    )
    monkeypatch.setattr(
        training,
        "augment",
        lambda x, how, g: views.append(dataclasses.asdict(how)) or augment(x, how, g),
    )
    name = {"simclr": "nt_xent", "byol": "byol_regression", "barlow": "barlow_twins"}[method]
    genuine = getattr(methods, name)
    monkeypatch.setattr(methods, name, lambda *a: losses.append(a[2:]) or genuine(*a))
    settings = dataclasses.replace(settings_for(method, "paper"), width=1, hidden=8, output=4)
    settings = dataclasses.replace(settings, epochs=20, batch=16)
    images = make_scenes(20).images
    pretrain(settings, 0, images, images, tmp_path, stop_after=11, progress=False)
    assert all(clip for clip, _ in seen)
    for key in ("momentum", "weight_decay", "eta"):
        assert {group[key] for _, group in seen} == {table[key]}
    # The rate is per 256 examples.
    rates = [group["lr"] for _, group in seen]
    assert rates[0] == table["start_lr"]
    assert rates[table["warmup"]] == max(rates) == table["lr"] * 16 / 256
    assert all(view == TABLE_1 for view in views)
    assert len(views) == 2 * len(seen)
    expected = {"simclr": (table.get("temperature"),), "byol": (), "barlow": (0.0051,)}[method]
    assert set(losses) == {expected}


# --- augmentation ---------------------------------------------------------------------------


@pytest.fixture
def pictures():
    return make_scenes(64, 4).images.tensor().float() / 255


def test_augmentation_is_decided_by_its_generator(pictures):
    def views(seed):
        return augment(pictures, Augmentation(), torch.Generator().manual_seed(seed))

    assert torch.equal(views(0), views(0))
    assert not torch.equal(views(0), views(1))
    assert views(0).shape == (64, 3, 32, 32)
    assert views(0).min() > -1e-6
    assert views(0).max() < 1 + 1e-6


def test_without_any_strength_augmentation_is_the_image(pictures):
    # A box of four times the area, whatever its shape, is cut to the whole image.
    nothing = Augmentation(
        least_scale=4, greatest_scale=4, flip=0, jitter=0, grey=0, blur=0, solarise=0
    )
    view = augment(pictures, nothing, torch.Generator().manual_seed(0))
    torch.testing.assert_close(view, pictures, atol=1e-5, rtol=0)
    always = dataclasses.replace(nothing, flip=1)
    flipped = augment(pictures, always, torch.Generator().manual_seed(0))
    torch.testing.assert_close(flipped, pictures.flip(3), atol=1e-5, rtol=0)
    inverted = dataclasses.replace(nothing, solarise=1)
    view = augment(pictures, inverted, torch.Generator().manual_seed(0))
    expected = torch.where(pictures < 0.5, pictures, 1 - pictures)
    assert ((view - expected).abs() < 1e-4).float().mean() > 0.999


def test_a_crop_samples_the_box_it_drew():
    # A picture whose channels are its own coordinates shows which box a crop was taken from.
    axis = (torch.arange(32) + 0.5) / 32
    picture = torch.stack([axis.expand(32, 32), axis[:, None].expand(32, 32), torch.zeros(32, 32)])
    settings = Augmentation(crop=24, least_scale=0.08)
    crops = random_resized_crop(
        picture.expand(2000, 3, 32, 32), settings, torch.Generator().manual_seed(0)
    )
    # From the centre of the first to the centre of the last pixel is 23/24 of the box.
    width = (crops[:, 0, 12, -2] - crops[:, 0, 12, 1]) * 24 / 21
    height = (crops[:, 1, -2, 12] - crops[:, 1, 1, 12]) * 24 / 21
    area, shape = width * height, width / height
    assert 0.07 < area.min() < 0.1
    assert area.max() < 1.001
    # Uniform on [0.08, 1], the part that the image's border cuts off taken away: a little less.
    assert area.mean() == pytest.approx(0.54, abs=0.03)
    assert shape[area < 0.5].min() > 0.74
    assert shape[area < 0.5].max() < 1.35


def test_hue_agrees_with_torchvision(pictures):
    for turn in (-0.2, 0.05, 0.2):
        ours = turn_hue(pictures, torch.full((64, 1, 1), turn))
        torch.testing.assert_close(ours, vision.adjust_hue(pictures, turn), atol=1e-5, rtol=0)


def test_blur_agrees_with_torchvision(pictures):
    generator = torch.Generator().manual_seed(3)
    ours = _blur(pictures[:1], generator)
    sigma = 0.1 + 1.9 * torch.rand(1, generator=torch.Generator().manual_seed(3)).item()
    theirs = vision.gaussian_blur(pictures[:1], [7, 7], [sigma, sigma])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


# --- encoders -------------------------------------------------------------------------------


def test_width_64_has_the_layers_of_torchvisions_resnet18():
    ours = cifar_resnet18(64).state_dict()
    theirs = torchvision.models.resnet18(num_classes=10).state_dict()
    del theirs["fc.weight"], theirs["fc.bias"]
    theirs["conv1.weight"] = theirs["conv1.weight"][:, :, 2:5, 2:5]
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_same_function_as_torchvisions_resnet18_with_the_cifar_stem():
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.maxpool = torch.nn.Identity()
    ours = cifar_resnet18(64, num_classes=10)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_representation_is_what_stands_before_the_classifier():
    labelled = cifar_resnet18(4, num_classes=3).eval()
    x = torch.randn(2, 3, 16, 16)
    bare = representation(labelled)
    assert torch.equal(bare(x), labelled.features(x))
    assert not bare.training
    assert representation(bare) is bare


def test_preprocess_is_what_the_trainer_normalises():
    scenes = make_scenes(20).images
    picture = torchvision.transforms.functional.to_pil_image(scenes.tensor()[3])
    encoder, preprocess = cifar_slim()
    assert torch.equal(preprocess(picture), normalise(scenes.tensor())[3])
    assert cifar_preprocess(picture).dtype == torch.float32
    assert encoder(normalise(scenes.tensor()[:2])).shape == (2, 128)
