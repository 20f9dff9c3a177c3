"""Rank and damping: cells against the scorer, recorded one by one and not made again."""

import shutil

import numpy as np
import pytest
from scipy.stats import spearmanr

from influence_lab.cli import main
from influence_lab.experiments import levels
from influence_lab.pretrain.resnets import normalise
from influence_lab.records import results
from influence_lab.records.recording import data_for
from influence_ssl import InfluenceScorer, LoGra, Relative


@pytest.fixture
def root(tmp_path, monkeypatch):
    place = results.folder_of("tiny", "simclr", 0, tmp_path)
    place.mkdir(parents=True)
    for name in ("encoder.safetensors", "vectors.npz"):
        shutil.copy(results.folder_of("tiny", "simclr", 0) / name, place)
    monkeypatch.setattr(levels, "CELLS", ((2, 1.0), levels.LOGIX))
    return tmp_path


def test_cells_are_the_scorers_and_kept(root, capsys, monkeypatch):
    where = ["reproduce", "levels", "--profile", "tiny", "--results", str(root)]
    assert main(where) == 0
    assert "ln |I| at rank 64, damping 0.1: SimCLR" in capsys.readouterr().out
    cell = levels.cell("tiny", "simclr", 2, 1.0, root)
    encoder = results.load_encoder("tiny", "simclr", 0)
    images = normalise(data_for("tiny", "train").tensor())
    curvatures = {"own": LoGra(2, damping=Relative(1.0)), "usual": LoGra()}
    own, usual = (
        InfluenceScorer(encoder, curvature=curvature, progress=False).score(images).magnitude
        for curvature in curvatures.values()
    )
    assert cell["mean |I|"] == pytest.approx(own.mean(), abs=0.01)
    assert cell["effective dimension"] == pytest.approx(own.mean(), rel=1e-3)
    assert cell["mean"][0] == pytest.approx(np.log(own).mean(), abs=1e-4)
    assert cell["std"][0] == pytest.approx(np.log(own).std(), abs=1e-4)
    assert cell["rank correlation"][0] == pytest.approx(spearmanr(own, usual).statistic, abs=2e-3)
    assert cell["mean"][0] < levels.predicted(cell) < np.log(cell["ceiling"])
    assert cell["provenance"]["command"] == "influence-lab reproduce levels --profile tiny --seed 0"
    before = levels.path_of("tiny", root).read_bytes()
    monkeypatch.setattr(InfluenceScorer, "score", None)
    assert main(where) == 0
    assert levels.path_of("tiny", root).read_bytes() == before


def test_logix_rank_and_damping_are_measured_for_every_method():
    for method in ("simclr", "byol", "barlow"):
        assert levels.LOGIX in levels.cells_of(method)
    assert levels.cell("paper", "simclr", *levels.LOGIX) is None
