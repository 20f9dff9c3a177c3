"""Whatever a file holds, its reader loads it or says in one line why not.

``MUTATIONS=10000 python -m pytest tests/influence_ssl/files/test_mutated.py -o timeout=0`` reads
that many mutated files per reader; without it a few hundred. Mutation k of a reader is the same in
every run. A failure names the first k of each kind of failure.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import signal
import stat
import sys
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, features
from safetensors.torch import save
from torch import nn

from influence_ssl import InfluenceScorer, Scores
from influence_ssl.analysis.ranking import read_labels, read_rows
from influence_ssl.command import embeddings
from influence_ssl.encoders.checkpoints import read_tensors
from influence_ssl.encoders.parts import find_part
from influence_ssl.errors import InfluenceError
from influence_ssl.files.images import ImageFiles

COUNT = int(os.environ.get("MUTATIONS", "0"))
# Of processor time for one file; what takes longer hangs. A GIF of 159 bytes may claim 34 million
# pixels, which are below Pillow's limit and take 20 s.
SECONDS = 60
TOKENS = (
    b"", b"\n", b"\r", b"\0" * 16, b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", b"NaN", b"1e999",
    b"-1", b"9" * 30, b"[" * 20_000, b'{"a":' * 20_000, b"null", b"[]", b"{}", b'"', b",", b";",
    b"../", b"/", b"\\", b"\x1b[31m", "\u202e\u2028\x85".encode(), b"<b>", b"\xed\xa0\x80",
)  # fmt: skip
WATCHED = (
    "os.", "shutil.", "subprocess.", "socket.", "pty.", "pickle.find_class", "exec",
)  # fmt: skip
HARMLESS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk"}

# What a reader did besides reading, while `watching` is on. A hook cannot be taken away again.
watching, deeds = False, list[str]()


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not watching:
        return
    if event == "open":
        path, mode, flags = arguments
        changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if changes or (isinstance(mode, str) and set(mode) & set("wax+")):
            deeds.append(f"open {path!r}")
    elif event.startswith(WATCHED) and event not in HARMLESS:
        deeds.append(event)


sys.addaudithook(hook)


class Hang(BaseException):
    pass


def hang(signum: int, frame: FrameType | None) -> None:
    raise Hang


class Reader(NamedTuple):
    """``seeds``: valid contents; ``read`` takes a file's content; ``inside`` changes what a
    checksum or a length would otherwise shield."""

    seeds: list[bytes]
    read: Callable[[bytes], object]
    inside: Callable[[bytes, random.Random], bytes] | None = None
    count: int = 200


def mutate(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(found)
        start = rng.randrange(size + 1)
        end = min(size, start + rng.choice((1, 2, 4, 8, 64, 512)))
        match rng.randrange(7):
            case 0:
                for place in range(start, end):
                    found[place] ^= 1 << rng.randrange(8)
            case 1:
                found[start:end] = rng.randbytes(end - start)
            case 2:
                del found[start:]
            case 3:
                del found[start:end]
            case 4:
                found[start:start] = found[start:end] * rng.choice((1, 2, 50))
            case 5:
                token = rng.choice(TOKENS)
                found[start : start + len(token) * rng.randrange(2)] = token
            case 6:
                token = rng.choice(TOKENS)
                found[start:end] = token
    return bytes(found)


def in_zip(data: bytes, rng: random.Random) -> bytes:
    """A member, a name, or a declared size of a zip changed, with checksums that fit."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = rng.choice(old.infolist())
        for member in old.infolist():
            content, info = old.read(member), zipfile.ZipInfo(member.filename)
            if member is chosen:
                match rng.randrange(6):
                    case 0:
                        up = ("../", "/", "C:\\", "..\\", "a/../../", "\x1b[31m\u202e", "\n", "\0")
                        info.filename = rng.choice(up) + info.filename
                    case 1:
                        info.external_attr = (stat.S_IFLNK | 0o777) << 16
                        content = b"/etc/passwd"
                    case 2:
                        info.compress_type = zipfile.ZIP_DEFLATED
                        content += b"\0" * 200_000
                    case _:
                        content = mutate(content, rng)
            new.writestr(info, content)
    found = bytearray(out.getvalue())
    if rng.random() < 0.2:  # a size in the table of contents that nothing could hold
        place = found.rfind(b"PK\x01\x02") + rng.choice((20, 24))
        found[place : place + 4] = rng.choice((b"\xfe\xff\xff\xff", b"\xff\xff\xff\xff"))
    return bytes(found)


def in_header(data: bytes, rng: random.Random) -> bytes:
    """The header of a .safetensors file changed, with a length that fits."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = mutate(data[8:end], rng)
    return len(header).to_bytes(8, "little") + header + data[end:]


def at(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def reading(data: bytes) -> object:
        global watching
        path.write_bytes(data)
        watching = True
        try:
            return read(path)
        finally:
            watching = False

    return reading


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()


def some_scores() -> Scores:
    names = ["a.png", 'b, "c".png', "d/é.png", "NA"]
    values = -np.arange(1.0, 5.0)
    return Scores(values, values * 0.1, np.arange(4), names, {"draws": 2, "kind": {"a": [1]}})


def score_file(folder: Path, suffix: str) -> Reader:
    path = folder / f"scores{suffix}"
    some_scores().save(path)
    seeds = [path.read_bytes()]
    if suffix != ".npz":
        table = some_scores().to_pandas()
        table["rank"], table["nearest"], table["duplicate_group"] = range(1, 5), "a.png", 1
        if suffix == ".csv":
            start = seeds[0].split(b"\n")[0] + b"\n"
            checked = b'# provenance: {"checked": true}\nindex,name,nearest\n0,a.png,\n1,b.png,\n'
            seeds += [start + table.to_csv(index=False).encode(), checked]
    read = at(path, lambda path: read_rows(path).missing())
    return Reader(seeds, read, in_zip if suffix == ".npz" else None)


def labels(folder: Path) -> Reader:
    names = ["a/b.png", "c.png", "d.png"]
    seeds = ["path,label\na/b.png,1\nc.png,2\nd.png,\n", "name;label;x\nc.png;é;1\nd.png;b;\n"]
    read = at(folder / "labels.csv", lambda path: read_labels(path, names))
    return Reader([seed.encode() for seed in seeds], read, count=100)


def pictures() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 2**16, (6, 5), dtype=np.uint16))
    kinds = [(".png", colours, {}), (".jpg", colours, {}), (".bmp", colours, {})]
    kinds += [(".gif", colours, {}), (".ppm", colours, {}), (".tif", colours, {})]
    kinds += [(".png", deep, {}), (".tiff", deep, {}), (".webp", colours, {})]
    kinds += [(".gif", colours, {"save_all": True, "append_images": [colours]})]
    kinds += [(".tif", colours, {"compression": "tiff_lzw"}), (".png", colours.quantize(8), {})]
    kinds += [(".jp2", colours, {})] if features.check("jpg_2000") else []
    kinds += [(".avif", colours, {})] if features.check("avif") else []
    for suffix, image, how in kinds:
        out = io.BytesIO()
        image.save(out, {".jpg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".jp2": "JPEG2000",
                         ".ppm": "PPM"}.get(suffix, suffix[1:].upper()), **how)  # fmt: skip
        yield suffix, out.getvalue()


def readable(path: Path) -> object:
    images = ImageFiles(path).readable()
    assert all(reason.isprintable() for _, reason in images.skipped), images.skipped
    return images


def image(folder: Path) -> Reader:
    # One name for all: Pillow goes by what a file holds.
    seeds = [data for _, data in pictures()]
    return Reader(seeds, at(folder / "image.png", readable), count=100)


def zip_of_images(folder: Path) -> Reader:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number, (suffix, data) in enumerate(itertools.islice(pictures(), 3)):
            archive.writestr(f"a/{number}{suffix}", data)
        archive.writestr("notes.txt", "no image")
    return Reader([out.getvalue()], at(folder / "images.zip", readable), in_zip, 80)


def table_of_images(folder: Path) -> Reader:
    for number, (_, data) in enumerate(itertools.islice(pictures(), 2)):
        (folder / f"{number}.png").write_bytes(data)
    seeds = [b"path,label\n0.png,a\n1.png,b\n", b"x;image\na;0.png\nb;1.png\n", b"0.png\n1.png\n"]
    return Reader(seeds, at(folder / "images.csv", readable), count=80)


def checkpoint(folder: Path, suffix: str) -> Reader:
    encoder = net()

    def read(path: Path) -> object:
        return find_part(encoder, read_tensors(path), str(path), (), None)

    state = encoder.state_dict()
    if suffix == ".safetensors":
        return Reader([save(state)], at(folder / "weights.safetensors", read), in_header)
    contents: list[tuple[Any, bool]] = [(state, True), ({"epoch": 3, "state_dict": state}, True)]
    legacy = suffix == ".pth"
    outs = [io.BytesIO() for _ in contents]
    for out, (content, _) in zip(outs, contents, strict=True):
        torch.save(content, out, _use_new_zipfile_serialization=not legacy)
    seeds = [out.getvalue() for out in outs]
    return Reader(seeds, at(folder / f"weights{suffix}", read), None if legacy else in_zip)


def fit_words(folder: Path) -> Reader:
    encoder, images = net(), torch.rand(4, 3, 2, 2)
    InfluenceScorer(encoder, draws=1, progress=False).fit(images, keep=True).save(folder)
    path = folder / "fit.json"
    read = at(path, lambda path: InfluenceScorer.load(path.parent, encoder, progress=False))
    return Reader([path.read_bytes()], read)


def fit_tensors(folder: Path) -> Reader:
    """With a hash that fits, as whoever means harm would write it."""
    import hashlib

    encoder, images = net(), torch.rand(4, 3, 2, 2)
    InfluenceScorer(encoder, draws=1, progress=False).fit(images, keep=True).save(folder)
    path, words = folder / "fit.safetensors", json.loads((folder / "fit.json").read_text())
    load = at(path, lambda path: InfluenceScorer.load(path.parent, encoder, progress=False))

    def read(data: bytes) -> object:
        words["tensors"] = hashlib.sha256(data).hexdigest()
        (folder / "fit.json").write_text(json.dumps(words))
        return load(data)

    return Reader([path.read_bytes()], read, in_header)


def kept_words(folder: Path) -> Reader:
    for number, (_, data) in enumerate(itertools.islice(pictures(), 2)):
        (folder / f"{number}.png").write_bytes(data)
    images = ImageFiles(folder).readable()
    torch.manual_seed(0)
    scorer = InfluenceScorer(
        nn.Sequential(nn.Flatten(), nn.Linear(90, 4)).eval(), draws=1, progress=False
    ).fit(images, keep=True)
    place = folder / "kept"
    embeddings.write(
        place, scorer, images, np.zeros((2, 4), np.float32), {"draws": 1}, False, np.zeros(2)
    )
    read = at(place / "images.json", lambda path: embeddings.read(path.parent))
    return Reader([(place / "images.json").read_bytes()], read)


def store(folder: Path, which: str) -> Reader:
    encoder, images = net(), torch.rand(4, 3, 2, 2)

    def run(path: Path) -> Scores:
        place = InfluenceScorer(encoder, draws=1, store=path.parent, progress=False)
        return place.score(images)

    whole = run(folder / "none")
    (path,) = folder.glob(which)

    def read(data: bytes) -> object:
        path.write_bytes(data)
        found = run(path)
        assert found == whole, "a damaged store changes the scores"
        return found

    return Reader([path.read_bytes()], read, in_header, count=12)


READERS: dict[str, Callable[[Path], Reader]] = {
    "scores.npz": lambda folder: score_file(folder, ".npz"),
    "scores.csv": lambda folder: score_file(folder, ".csv"),
    "scores.parquet": lambda folder: score_file(folder, ".parquet"),
    "labels": labels,
    "image": image,
    "images.zip": zip_of_images,
    "images.csv": table_of_images,
    "weights.pt": lambda folder: checkpoint(folder, ".pt"),
    "weights.pth": lambda folder: checkpoint(folder, ".pth"),
    "weights.safetensors": lambda folder: checkpoint(folder, ".safetensors"),
    "fit.json": fit_words,
    "fit.safetensors": fit_tensors,
    "images.json": kept_words,
    "probe": lambda folder: store(folder, "probe.safetensors"),
    "store": lambda folder: store(folder, "0-*.safetensors"),
}


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_loads_or_is_one_line(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    reader = READERS[name](folder)
    for seed in reader.seeds:
        reader.read(seed)  # and what is imported late is imported
    before, failures = tree(tmp_path), dict[str, list[str]]()
    outcomes: Counter[str] = Counter()
    previous = signal.signal(signal.SIGPROF, hang)
    try:
        for k in range(COUNT or reader.count):
            rng = random.Random(f"{name} {k}")
            seed = rng.choice(reader.seeds)
            change = reader.inside if reader.inside is not None and rng.random() < 0.5 else mutate
            data = change(seed, rng)
            deeds.clear()
            # Again later: what is raised in a callback of the garbage collector is dropped.
            signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)
            try:
                reader.read(data)
                outcome = "loaded"
            except InfluenceError as error:
                outcome = "refused"
                if not str(error).isprintable():
                    outcome = f"not one printable line: {str(error)!r:.300}"
            except (Exception, Hang) as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(last.filename).name}:{last.lineno}"
                outcome = f"{type(error).__name__} at {where}: {str(error)[:100]!r}"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            if deeds:
                outcome = f"does more than read: {deeds[0]}"
            outcomes[outcome] += 1
            if outcome not in ("loaded", "refused"):
                failures.setdefault(outcome, []).append(str(k))
    finally:
        signal.signal(signal.SIGPROF, previous)
    print(name, dict(outcomes.most_common(4)))
    assert tree(tmp_path) == before or name in ("probe", "store")
    assert not failures, "\n".join(f"{what}: {ks[:3]}" for what, ks in failures.items())
