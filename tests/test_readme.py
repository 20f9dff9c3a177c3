"""The README's example runs and prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from influence_lab.records import results

README = Path(__file__).parents[1] / "README.md"


def blocks():
    return re.findall(r"```(?:python|text)\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_of_influence_finds_the_training_images_of_each_query(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for folder, count in (("photos", 12), ("queries", 2)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{folder}-{number}.png")
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(blocks()[2], "README.md", "exec"), {"encoder": encoder})
    lines = out.getvalue().splitlines()
    assert len(lines) == 1 + 2 * 10
    for query, rows in (("queries-0.png", lines[1:11]), ("queries-1.png", lines[11:])):
        values = [float(line.split()[-1]) for line in rows]
        assert all(query in line and "photos-" in line for line in rows)
        assert values == sorted(values)


def test_the_example_prints_what_the_readme_says():
    code, printed = blocks()[:2]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    assert out.getvalue() == printed


def test_the_links_into_the_repository_resolve():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def test_readme_first_page_and_how_tos_name_the_page_of_numbers():
    book = README.parent / "book"
    assert "](book/practice/which-number.md)" in README.read_text()
    assert "](practice/which-number.md)" in (book / "intro.md").read_text()
    for name in ("score-your-own", "trace", "duplicates", "outliers", "audit", "settings"):
        assert "{doc}`which-number`" in (book / f"practice/{name}.md").read_text(), name


def test_the_readme_counts_the_trainings_that_are_recorded():
    text = " ".join(README.read_text().split())
    said = re.findall(r"([\d.]+) and ([\d.]+) over ([\d,]+)", text)
    regimes = (
        ("memorisation", "crops"),
        ("memorisation", "crops and noise"),
        ("memorisation-cifar10", "crops"),
    )
    for (name, regime), found in zip(regimes, said, strict=True):
        _, record = results.largest_record(name)
        row = record["predictors"][regime]["alignment loss"]
        distance, score = row["kNN distance"]["1"], row["noise score, LoGra"]["1"]
        runs = record["trainings"][regime]
        assert found == (f"{distance[0]:.2f}", f"{score[0]:.2f}", f"{runs:,}")
        assert distance[0] > score[0]  # "better"; with crops alone, the intervals do not meet
        assert regime != "crops" or distance[1] > score[2]
    loss = record["predictors"][regime]["alignment loss"]["alignment loss"]["1"]
    assert f"the training loss reaches {loss[0]:.2f}" in text
    images = [
        str(results.largest_record(name)[1]["images"])
        for name in ("memorisation", "memorisation-cifar10")
    ]
    assert re.findall(r"on (\d+) (?:digits|CIFAR-10 images)", text) == images


def test_the_finding_is_what_is_recorded():
    text = " ".join(README.read_text().split())
    low, high = re.search(r"rank correlation ([\d.]+) to ([\d.]+) on CIFAR-10", text).groups()
    _, record = results.largest_record("stability")
    found = [method["score against"]["loss"][0] for method in record["methods"].values()]
    assert (low, high) == (f"{min(found):.2f}", f"{max(found):.2f}")


def test_it_is_short():
    assert len(README.read_text().splitlines()) < 120
