"""From queries to their sources: against explicit gradients, and every input that is refused."""

import errno
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from commands import ENCODERS, listing, run, small, tensors
from nets import brute_force_gradients
from PIL import Image
from scipy.stats import spearmanr
from torchvision.transforms import functional as TF

from influence_ssl import GaussianNoise, InfluenceScorer, LoGra, Scores, _kept
from influence_ssl.analysis import trace as analysis
from influence_ssl.command import tracing
from influence_ssl.command.main import main

QUERIES = ("a.png", "b<i>.png", "copy.png")
COPIED = 5
DRAWS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images and their kept embeddings; three queries, one of them image 5."""
    folder, rng = tmp_path_factory.mktemp("trace"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        for k in range(24):
            path = Path("images", "cat" if k % 2 else "dog", f"{k:02}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)).save(path)
        Path("mine.py").write_text(ENCODERS)
        Path("queries").mkdir()
        for name in QUERIES[:2]:
            pixels = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path("queries", name))
        Image.open(Path("images", listing()[COPIED])).save("queries/copy.png", compress_level=0)
        assert run("--draws", DRAWS, "--rank", 4, "--keep", "kept") == 0
        assert traced("--out", "t.parquet", "t.html", "t.csv", "--top", 4) == 0
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which a test may spoil."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def traced(*arguments: object, encoder: str | None = "mine.py:small") -> int:
    given = [str(argument) for argument in arguments]
    if "--query" not in given:
        given += ["--query", "queries"]
    if encoder is not None:
        given += ["--encoder", encoder]
    return main(["trace", "kept", "--device", "cpu", *given])


def asked() -> torch.Tensor:
    return torch.stack([TF.to_tensor(Image.open(Path("queries", name))) for name in QUERIES])


def table() -> pandas.DataFrame:
    return pandas.read_parquet("t.parquet")


def test_influences_are_those_of_a_scorer_in_python(work: Path) -> None:
    scorer = InfluenceScorer(small(), curvature=LoGra(4), draws=DRAWS, progress=False)
    scorer.fit(tensors(), names=listing(), keep=True)
    for cosine in (False, True):
        if cosine:
            assert traced("--out", "t.parquet", "--top", 4, "--cosine") == 0
        found = scorer.influence(asked(), names=QUERIES, normalise="cosine" if cosine else None)
        expected = {
            (query, listing()[i]): value
            for query, values in zip(QUERIES, found.values, strict=True)
            for i, value in enumerate(values)
        }
        ends = scorer.influence(
            asked(), names=QUERIES, top=4, normalise="cosine" if cosine else None
        )
        rows = table()
        for row in rows.itertuples():
            assert row.influence == pytest.approx(expected[row.query, row.name], rel=1e-3, abs=1e-4)
        for q, query in enumerate(QUERIES):
            of = rows[rows["query"] == query]
            names = [listing()[i] for i in ends.positions[q]]
            assert of[of["list"] == "helps"]["name"].tolist() == names[:4]
            assert of[of["list"] == "hurts"]["name"].tolist() == names[:3:-1]
            assert (of[of["list"] == "helps"]["influence"] < 0).all()
            assert (of[of["list"] == "hurts"]["influence"] > 0).all()


def test_influences_are_the_bilinear_form_of_brute_force_gradients(work: Path) -> None:
    """The exact empirical Fisher, from one image's gradient at a time."""
    assert run("--curvature", "fisher", "--dtype", "float64", "--keep", "full") == 0
    assert main(["trace", "full", "--query", "queries", "--out", "full.csv", "--top", "24",
                 "--encoder", "mine.py:small", "--device", "cpu"]) == 0  # fmt: skip
    net, x, y = small().double(), tensors().double(), asked().double()
    n, noise = len(x), GaussianNoise()
    index = torch.arange(n + len(y))
    g = np.hstack(brute_force_gradients(net, x, noise(x, index[:n], 0, 0)))
    h = np.hstack(brute_force_gradients(net, y, noise(y, index[n:], 0, 0)))
    fisher = g.T @ g / n
    damping = 0.1 * np.trace(fisher) / min(g.shape) * np.eye(len(fisher))
    expected = -h @ np.linalg.solve(fisher + damping, g.T)
    rows = pandas.read_csv("full.csv", skiprows=1)
    assert len(rows[rows["list"].isin(["helps", "hurts"])]) == expected.size
    for row in rows.itertuples():
        value = expected[QUERIES.index(row.query), listing().index(row.name)]
        assert row.influence == pytest.approx(value, abs=1e-5 * abs(expected).max())


def test_neighbours_are_those_of_the_representations_and_of_the_pixels(work: Path) -> None:
    with torch.no_grad():
        z, zq = small()(tensors()), small()(asked())
    near = F.cosine_similarity(zq[:, None], z[None], dim=2).numpy()

    def grey(folder: str, names: list[str]) -> np.ndarray:
        pictures = [Image.open(Path(folder, name)).convert("L") for name in names]
        side = (32, 32), Image.Resampling.BOX
        return np.stack([np.asarray(p.resize(*side), dtype=float).ravel() for p in pictures])

    pixels = np.corrcoef(grey("queries", list(QUERIES)), grey("images", listing()))[:3, 3:]
    rows = table()
    for which, values in (("representation", near), ("pixels", pixels)):
        for q, query in enumerate(QUERIES):
            of = rows[(rows["query"] == query) & (rows["list"] == which)]
            order = np.argsort(-values[q])[:4]
            assert of["name"].tolist() == [listing()[i] for i in order]
            np.testing.assert_allclose(of[which], values[q][order], rtol=1e-4)


def test_a_query_among_the_images_is_marked_as_itself(work: Path) -> None:
    """By its pixels: the file and its name are others."""
    rows, name = table(), listing()[COPIED]
    assert Path("queries/copy.png").read_bytes() != Path("images", name).read_bytes()
    itself = (rows["query"] == "copy.png") & (rows["name"] == name)
    assert rows["same_pixels"].equals(itself)
    first = rows[itself & rows["list"].isin(["representation", "pixels"])]
    assert first["rank"].tolist() == [1, 1]
    page = Path("t.html").read_text()
    assert f"This query is one of the images: {name} has the same pixels." in page
    assert page.count("<strong>the query itself</strong>") == itself.sum()


def test_the_reliability_is_that_of_the_draws(work: Path) -> None:
    scorer = InfluenceScorer(small(), curvature=LoGra(4), draws=DRAWS, progress=False)
    scorer.fit(tensors(), keep=True)
    phi, kept = scorer.embed(asked(), index=range(24, 27)), scorer.embed(tensors())
    parts = zip(phi.chunk(DRAWS, 1), kept.chunk(DRAWS, 1), strict=True)
    each = [(-DRAWS * a @ b.T).numpy() for a, b in parts]
    pairs = [(0, 1), (0, 2), (1, 2)]
    page = Path("t.html").read_text()
    for q, query in enumerate(QUERIES):
        one = np.mean([spearmanr(each[a][q], each[b][q]).statistic for a, b in pairs])
        expected = DRAWS * one / (1 + (DRAWS - 1) * one) if one > 0 else one
        article = page.split(f'<article class="query" id="query-{q + 1}"')[1].split("</article>")[0]
        assert f"Reliability of its influences: {expected:.2f}." in article, query


def test_the_page_escapes_names_and_asks_for_nothing(work: Path) -> None:
    page = Path("t.html").read_text()
    assert "b&lt;i&gt;.png" in page
    assert "b<i>" not in page
    assert "http" not in page
    assert re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", page) == []


def test_all_files_say_the_same_and_tell_how_they_were_made(work: Path) -> None:
    text = pandas.read_csv("t.csv", skiprows=1)
    pandas.testing.assert_frame_equal(text, table())
    provenance = json.loads(Path("t.csv").read_text().split("\n")[0].removeprefix("# provenance: "))
    assert (provenance["draws"], provenance["examples"]) == (DRAWS, 3)
    assert provenance["queries"] == {"source": "queries", "images": 3, "skipped": []}


def test_a_single_image_is_a_query(work: Path) -> None:
    assert traced("--query", "queries/a.png", "--out", "one.parquet", "--top", 4) == 0
    found, first = pandas.read_parquet("one.parquet"), table()
    pandas.testing.assert_frame_equal(found, first[first["query"] == "a.png"], rtol=1e-4)


def test_an_unreadable_query_is_left_out_and_changes_no_other(work: Path) -> None:
    Path("queries/b<i>.png").write_bytes(b"no image")
    assert traced("--out", "some.parquet", "some.html", "--top", 4) == 0
    rows = table()
    expected = rows[rows["query"] != "b<i>.png"].reset_index(drop=True)
    pandas.testing.assert_frame_equal(pandas.read_parquet("some.parquet"), expected, rtol=1e-4)
    assert "1 query could not be read" in Path("some.html").read_text()
    assert traced("--out", "some.parquet", "--strict") == 2


def test_scores_are_the_same_with_kept_embeddings(work: Path) -> None:
    kept = Path("scores.npz").read_bytes()
    assert run("--draws", DRAWS, "--rank", 4, "--out", "plain.npz") == 0
    first, other = (np.load(path) for path in ("scores.npz", "plain.npz"))
    np.testing.assert_array_equal(first["values"], other["values"])
    assert kept
    assert not list(Path().glob("*.partial"))


def larger() -> None:
    for name in QUERIES:
        path = Path("queries", name)
        Image.open(path).resize((12, 12)).save(path)


def many() -> None:
    for k in range(tracing.PAGE):
        shutil.copy("queries/a.png", f"queries/{k}.png")


def spoil(name: str) -> None:
    path = Path("kept", name)
    path.write_bytes(path.read_bytes()[:-9])


def builtin() -> None:
    path = Path("kept/images.json")
    path.write_text(path.read_text().replace("mine.py:small", "builtin:cifar-simclr"))


def mixture() -> None:
    """A fit of other images in the folder of these."""
    assert run("--rank", 4, "--seed", 1, "--keep", "other") == 0
    for name in ("fit.json", "fit.safetensors"):
        shutil.copy(Path("other", name), "kept")


def brighter(factor: float = 2) -> None:
    """The same weights with another preprocess."""
    Path("bright.py").write_text(
        f"{ENCODERS}\n\ndef brighter():\n"
        f"    return small(), lambda image: {factor} * TF.to_tensor(image)\n"
    )


REFUSED = {
    "no folder": (lambda: shutil.rmtree("kept"), (), {}, "'kept' does not exist"),
    "a file": (
        lambda: (shutil.rmtree("kept"), Path("kept").write_text("")), (), {}, "'kept' is a file"
    ),
    "a folder of other things": (
        lambda: Path("kept/images.json").unlink(), (), {}, "'kept' holds no kept embeddings"
    ),
    "half a folder": (
        lambda: Path("kept/images.safetensors").unlink(), (), {}, "'kept' is damaged; create it"
    ),
    "words cut short": (lambda: spoil("images.json"), (), {}, "'kept' is damaged"),
    "images cut short": (lambda: spoil("images.safetensors"), (), {}, "'kept' is damaged"),
    "fit cut short": (lambda: spoil("fit.safetensors"), (), {}, "fit.safetensors' is damaged"),
    "fit of another run": (mixture, (), {}, "'kept' is damaged"),
    "another format": (
        lambda: Path("kept/images.json").write_text(
            Path("kept/images.json").read_text().replace('"format": 2', '"format": 9')
        ),
        (), {}, "written in format 9, but this version reads 2",
    ),
    "no encoder": (
        None, (), {"encoder": None}, "'mine.py:small', and code named .* on request; give --enc"
    ),
    # It is loaded without being named: its images have 32 pixels.
    "no encoder, but a built-in one": (
        builtin, (), {"encoder": None}, "queries of 3 x 32 x 32 but was fitted on images of 3 x 10"
    ),
    "another encoder": (
        None, (), {"encoder": "mine.py:Zero"}, "'kept' holds the fit of an encoder with different"
    ),
    "another preprocess": (
        brighter, (), {"encoder": "bright.py:brighter"}, "preprocess of --encoder differs from"
    ),
    "another perturbation": (
        None, ("--perturbation", "mine:halving"), {}, "made with Gaussian noise; leave it out"
    ),
    "empty top": (None, ("--top", 0), {}, "--top 0 must be from 1 to 24"),
    "more than there are": (None, ("--top", 25), {}, "--top 25 must be from 1 to 24"),
    "no queries": (None, ("--query", "none"), {}, "no such folder, zip or CSV: 'none'"),
    "no images among them": (
        lambda: Path("empty").mkdir(), ("--query", "empty"), {}, "no images in 'empty'"
    ),
    "queries of another size": (
        larger, (), {}, "queries of 3 x 12 x 12 but was fitted on images of 3 x 10 x 10; resize"
    ),
    "more queries than a page shows": (
        many, (), {}, "holds 103 images, but a page shows at most 100 queries"
    ),
    "images that are gone": (
        lambda: shutil.rmtree("images"), (), {}, "not in 'images'; give --images PATH"
    ),
    "other images": (
        None, ("--images", "queries"), {}, "'queries' holds none of the images that were scored"
    ),
    "output of another kind": (None, ("--out", "t.npz"), {}, "'t.npz' must end in .html, .par"),
    "output twice": (
        None, ("--out", "new.csv", "new.csv"), {}, "'new.csv' would overwrite an input"
    ),
    "output in no folder": (None, ("--out", "no/t.csv"), {}, "'no' is not a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    prepare, arguments, settings, message = REFUSED[case]
    if prepare is not None:
        prepare()
    capsys.readouterr()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    given = arguments if "--out" in arguments else (*arguments, "--out", "new.html", "new.csv")
    assert traced(*given, **settings) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("influence-ssl: error: ")
    assert re.search(message, line), line
    after = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert {p: x for p, x in after.items() if "__pycache__" not in p.parts} == before


def test_a_full_disk_leaves_the_earlier_files(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {name: Path(name).read_bytes() for name in ("t.csv", "t.html")}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        assert traced("--out", "t.csv", "t.html") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no space left on the disk" in line
    assert {name: Path(name).read_bytes() for name in before} == before
    assert not list(Path().glob(".*-t.*"))


def test_many_queries_are_traced_a_few_at_a_time(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that their φ fit as well, which may be longer than there are images."""
    sizes, embed = [], InfluenceScorer.embed

    def counting(self: InfluenceScorer, images: Any, *arguments: Any) -> torch.Tensor:
        phi = embed(self, images, *arguments)
        sizes.append(phi.shape)
        return phi

    monkeypatch.setattr(InfluenceScorer, "embed", counting)
    assert traced("--out", "new.parquet", "--top", 4) == 0
    ((count, length),) = sizes
    assert count == len(QUERIES)
    assert length > DRAWS * 24
    sizes.clear()
    monkeypatch.setattr(analysis, "_ENTRIES", 2 * length - 1)
    assert traced("--out", "new.parquet", "--top", 4) == 0
    assert [count for count, _ in sizes] == [1, 1, 1]
    pandas.testing.assert_frame_equal(pandas.read_parquet("new.parquet"), table(), rtol=1e-4)


def more_than_there_is(*_: Any) -> torch.Tensor:
    return torch.empty(2**50)


def raising(*_: Any) -> None:
    raise torch.OutOfMemoryError("many\nlines")


FULL = "out of memory; use a smaller --batch-size or fewer queries."
TOO_MANY = {
    "no room for φ": (_kept, "free_memory", lambda _: 0.0, "the embeddings of 3 images take"),
    "a processor's memory": (analysis, "influences", more_than_there_is, FULL),
    "a card's memory": (analysis, "influences", raising, FULL),
}


@pytest.mark.parametrize("case", TOO_MANY)
def test_queries_that_do_not_fit_into_memory_are_one_line_and_nothing_is_lost(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    *place, message = TOO_MANY[case]
    monkeypatch.setattr(*place)
    capsys.readouterr()
    before = {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}
    assert traced("--out", "t.html", "t.csv", "t.parquet") == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith(f"influence-ssl: error: {message}")
    after = {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}
    assert {p: x for p, x in after.items() if "__pycache__" not in p.parts} == before


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_results_of_another_kind_are_not_replaced(
    work: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    def checked(out: str) -> int:
        given = ["--data", "images", "--encoder", "mine.py:small", "--device", "cpu"]
        return main(["check", *given, "--out", out])

    commands = {
        "score": lambda out: run("--out", out),
        "check": checked,
        "trace": lambda out: traced("--out", out),
    }
    holds = {"score": "scores", "check": "the results of check", "trace": "traced queries"}
    for kind, command in commands.items():
        assert command(f"{kind}.{suffix}") == 0
    for kind, what in holds.items():
        out, before = f"{kind}.{suffix}", Path(f"{kind}.{suffix}").read_bytes()
        for other in commands.keys() - {kind}:
            capsys.readouterr()
            assert commands[other](out) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"--out {out!r} holds {what}, which would be lost; name another file." in line
            assert Path(out).read_bytes() == before
        assert commands[kind](out) == 0
    assert run("--out", "s.csv") == 0
    select = ["select", "scores.npz", "--drop-highest", "1", "--out"]
    assert (main([*select, "s.csv"]), main([*select, "list.csv"]), main([*select, "list.csv"])) == (
        2, 0, 0,
    )  # fmt: skip


KEEP_REFUSED = {
    "a file": ("mine.py", "'mine.py' is a file"),
    "a folder of images": ("images", "'images' would overwrite an input"),
    "a folder of other things": ("queries", "'queries' holds 'a.png', which would be deleted"),
    "in no folder": ("no/kept", "'no' is not a folder"),
    "the scores": ("scores.npz", "'scores.npz' would overwrite"),
}


@pytest.mark.parametrize("case", KEEP_REFUSED)
def test_a_folder_that_cannot_take_the_embeddings_is_refused_before_the_work(
    work: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    folder, message = KEEP_REFUSED[case]
    # The encoder would fail if it were asked.
    assert run("--keep", folder, encoder="mine.py:shouting") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


OWN = {"a report": "report.html", "a folder": "queries/a.png", "a hidden file": ".notes"}


@pytest.mark.parametrize("name", OWN.values(), ids=OWN)
def test_what_the_user_added_to_the_embeddings_is_not_deleted(
    work: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    added = Path("kept", name)
    added.parent.mkdir(exist_ok=True)
    added.write_text("mine")
    # The encoder would fail if it were asked.
    assert run("--keep", "kept", encoder="mine.py:shouting") == 2
    (line,) = capsys.readouterr().err.splitlines()
    first = name.split("/")[0]
    assert f"--keep 'kept' holds {first!r}, which would be deleted" in line
    assert "name another folder, or move it away" in line
    assert added.read_text() == "mine"


def test_what_a_desktop_adds_to_the_embeddings_goes_with_them(work: Path) -> None:
    Path("kept/.DS_Store").write_text("icons")
    assert run("--seed", 1, "--keep", "kept") == 0
    assert {path.name for path in Path("kept").iterdir()} == {
        "images.json", "images.safetensors", "fit.json", "fit.safetensors"
    }  # fmt: skip


def test_what_the_user_adds_during_the_work_is_not_deleted(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = InfluenceScorer.fit

    def adding(self: InfluenceScorer, *arguments: Any, **settings: Any) -> Any:
        Path("kept/report.html").write_text("mine")
        return fit(self, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(InfluenceScorer, "fit", adding)
        assert run("--seed", 1, "--keep", "kept") == 2
    assert "holds 'report.html'" in capsys.readouterr().err
    Path("kept/report.html").unlink()
    assert run("--seed", 1, "--keep", "kept") == 0


@pytest.mark.parametrize("name", ["images.json", "fit.json"])
def test_a_foreign_file_with_the_name_of_one_of_ours_is_not_deleted(
    work: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Path("coco").mkdir()
    Path("coco", name).write_text("{}")
    assert run("--keep", "coco", encoder="mine.py:shouting") == 2
    assert f"holds {name!r}, which would be deleted" in capsys.readouterr().err
    assert Path("coco", name).read_text() == "{}"


def test_the_scores_are_not_written_into_the_folder_that_is_replaced(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--keep", "kept", "--out", "kept/s.csv", encoder="mine.py:shouting") == 2
    assert "cannot hold --out 'kept/s.csv'; write one of them" in capsys.readouterr().err


def test_a_link_to_a_folder_is_followed(work: Path) -> None:
    Path("disk").mkdir()
    shutil.move("kept", "disk/real")
    Path("kept").symlink_to("disk/real")
    before = Path("kept/fit.json").read_bytes()
    assert run("--seed", 1, "--keep", "kept") == 0
    assert Path("kept").is_symlink()
    assert Path("disk/real/fit.json").read_bytes() != before
    assert not list(Path("disk").glob(".*"))


def test_embeddings_replace_earlier_ones_whole_or_not_at_all(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path("kept").iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before, scores = files(), Path("scores.npz").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(InfluenceScorer, "save", full)
        assert run("--seed", 1, "--keep", "kept") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "no space left on the disk" in line
    assert "kept in scores.npz.partial; repeat the command to resume" in line
    assert (files(), Path("scores.npz").read_bytes()) == (before, scores)
    assert run("--seed", 1, "--keep", "kept") == 0
    assert files().keys() == before.keys()
    assert files() != before
    assert not list(Path().glob(".*-kept"))
    assert not Path("scores.npz.partial").exists()


def test_a_picture_that_changed_is_not_shown(work: Path) -> None:
    name = table()["name"][0]
    Image.new("RGB", (10, 10), "red").save(Path("images", name))
    assert traced("--out", "new.html", "--top", 4) == 0
    assert f"{name}: no longer the image that was scored" in Path("new.html").read_text()


def test_a_map_is_of_the_run_that_wrote_the_scores(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def mapped(scores: str) -> int:
        return main(["report", scores, "--kept", "kept", "--out", "map.html"])

    assert mapped("scores.npz") == 0
    own = ("--draws", DRAWS, "--rank", 4)
    assert run(*own, "--out", "s.csv") == 0
    assert mapped("s.csv") == 0
    # Another program may write fewer digits.
    exact = Scores.load("s.csv").values
    first = Path("s.csv").read_text().splitlines()[0]
    rounded = pandas.read_csv("s.csv", skiprows=1).to_csv(index=False, float_format="%.15g")
    Path("s.csv").write_text(f"{first}\n{rounded}")
    assert (Scores.load("s.csv").values != exact).any()
    assert mapped("s.csv") == 0
    # Other code under the same name leaves names, files and settings as they were.
    Path("mine.py").write_text(ENCODERS.replace("nn.GELU()", "nn.Tanh()"))
    sys.modules.pop("mine", None)
    assert run(*own, "--out", "other.csv") == 0
    capsys.readouterr()
    Path("map.html").unlink()
    assert mapped("other.csv") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--kept is of another run than 'other.csv': the two have different scores" in line
    assert "give the folder that the same run of influence-ssl score wrote" in line
    assert not Path("map.html").exists()


def test_the_preprocess_is_not_compared_on_images_that_are_gone(work: Path) -> None:
    brighter()
    shutil.rmtree("images")
    assert traced("--out", "new.csv", encoder="bright.py:brighter") == 0


@pytest.mark.parametrize(("factor", "code"), [(1.01, 2), (1 + 1e-7, 0)])
def test_the_preprocess_is_compared_up_to_rounding(work: Path, factor: float, code: int) -> None:
    brighter(factor)
    assert traced("--out", "new.csv", encoder="bright.py:brighter") == code


def unreadable(path: Path) -> None:
    path.write_bytes(b"no image")


def repainted(path: Path) -> None:
    Image.new("RGB", (10, 10), "red").save(path)


@pytest.mark.parametrize("spoilt", [unreadable, repainted])
def test_an_image_that_is_no_longer_the_scored_one_tells_nothing_of_the_preprocess(
    work: Path, spoilt: Callable[[Path], None]
) -> None:
    for name in listing()[:2]:
        spoilt(Path("images", name))
    assert traced("--out", "new.csv") == 0


def test_the_preprocess_is_compared_with_the_bits_of_the_scored_images(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bits in use of the images that are left may be fewer."""
    rng = np.random.default_rng(0)
    Path("deep").mkdir()
    for name, top in (("a.png", 4096), ("b.png", 4096), ("c.png", 65536)):
        values = rng.integers(0, top, (10, 10)).astype(np.uint16)
        Image.fromarray(values).save(Path("deep", name))
    assert run("--keep", "kept", data="deep") == 0
    Path("deep/c.png").unlink()
    assert traced("--out", "new.csv") == 0
    brighter()
    capsys.readouterr()
    assert traced("--out", "new.csv", encoder="bright.py:brighter") == 2
    assert "preprocess of --encoder differs" in capsys.readouterr().err


def test_16_bit_queries_are_read_with_the_bits_of_the_scored_images(work: Path) -> None:
    """Of a query alone, fewer bits would do: it would become brighter than the image it copies."""
    rng = np.random.default_rng(0)
    for name in ("dark.png", "bright.png"):
        Path("deep").mkdir(exist_ok=True)
        top = 4096 if name == "dark.png" else 65536
        values = rng.integers(0, top, (10, 10)).astype(np.uint16)
        Image.fromarray(values).save(Path("deep", name))
    shutil.rmtree("kept")
    assert run("--keep", "kept", data="deep") == 0
    assert traced("--query", "deep/dark.png", "--out", "deep.csv") == 0
    found = pandas.read_csv("deep.csv", skiprows=1)
    assert set(found["name"][found["same_pixels"]]) == {"dark.png"}
    # The page shows the query as the encoder received it, with the same picture as the image.
    assert traced("--query", "deep/dark.png", "--out", "deep.html") == 0
    assert len(set(re.findall(r"data:image[^\"]*", Path("deep.html").read_text()))) == 2


def test_own_noise_is_given_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ("--perturbation", "mine.py:halving")
    assert run(*own, "--keep", "kept") == 0
    capsys.readouterr()
    assert traced("--out", "own.csv") == 2
    assert "give --perturbation mine.py:halving" in capsys.readouterr().err
    assert traced("--out", "own.csv", *own) == 0
    assert len(pandas.read_csv("own.csv", skiprows=1))
