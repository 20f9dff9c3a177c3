"""What a provenance says about versions and processor, wherever the scores are made."""

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from influence_ssl import InfluenceScorer, Invariance, __version__, provenance


@pytest.fixture
def processor() -> Iterator[object]:
    """The processor's name, asked for anew."""
    provenance.processor.cache_clear()
    yield provenance.processor
    provenance.processor.cache_clear()


def test_the_model_is_the_systems_own(processor, tmp_path: Path, monkeypatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some Maker  12-Core @ 3 GHz\n\n"
                       "processor\t: 1\nmodel name\t: another\n")  # fmt: skip
    monkeypatch.setattr(provenance, "_CPUINFO", cpuinfo)
    assert processor() == "Some Maker  12-Core @ 3 GHz"


@pytest.mark.parametrize(
    "text", [None, "processor\t: 0\nCPU part\t: 0xd0c\n", "model name\t: \nflags\t: a\n"]
)
@pytest.mark.parametrize(
    ("family", "kind", "expected"),
    [("Family 6", "kind", "Family 6"), ("", "kind", "kind"), ("", "", "unknown")],
)
def test_where_the_system_names_no_model(
    processor, text, family, kind, expected, tmp_path: Path, monkeypatch
) -> None:
    """No such file, as on Windows and macOS, or one without the name."""
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    monkeypatch.setattr(provenance, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(platform, "processor", lambda: family)
    monkeypatch.setattr(platform, "machine", lambda: kind)
    assert processor() == expected


def test_scores_say_on_what_they_were_computed() -> None:
    images = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        found = InfluenceScorer(nn.Linear(6, 3), progress=False).score(images).provenance
    finally:
        torch.set_num_threads(threads)
    assert found["versions"]["influence-ssl"] == __version__
    assert found["versions"]["timm"] == timm.__version__
    assert found["processor"] == provenance.processor() != ""
    assert found["vector extensions"] == torch.backends.cpu.get_cpu_capability()
    assert found["threads"] == threads + 1
    assert found["torch build"].startswith(f"{torch.__version__}, BLAS ")


@pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32")
def test_of_a_card_its_name_versions_and_precision(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: asked.append(d) or "A card")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    card = torch.device("cuda", 1)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
        found = provenance.device_used(card)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    assert asked == [card]
    assert found == {
        "device": "cuda:1", "card": "A card", "CUDA": "13.0", "cuDNN": 91000,
        "TF32": {"products": False, "convolutions": True},
    }  # fmt: skip
    assert provenance.device_used(torch.device("cpu")) == {"device": "cpu"}


def test_parts_without_a_repr_are_named_alike_in_every_process() -> None:
    def brighter(x: torch.Tensor, index: torch.Tensor, draw: int, seed: int) -> torch.Tensor:
        return 1.1 * x**2

    class Plain:
        def project(self, layers: object) -> None:
            pass

        def fit(self, gradients: object) -> object:
            return lambda g: g.double().square().sum(1)

    scorer = InfluenceScorer(nn.Linear(6, 3), Invariance(brighter), Plain(), progress=False)
    found = scorer.score(torch.rand(3, 6)).provenance
    assert "brighter>" in found["objective"]
    assert "Plain object>" in found["curvature"]
    assert " at 0x" not in found["objective"] + found["curvature"]
