"""The reader against Pillow, zipfile, hashlib and torchvision, and every source it must refuse."""

import csv
import hashlib
import io
import os
import pickle
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.transforms import functional as TF

from influence_ssl.ahead import in_threads
from influence_ssl.errors import (
    InfluenceError,
    InfluenceOSError,
    InfluenceTypeError,
    InfluenceValueError,
)
from influence_ssl.files.decoding import Decoded, decode
from influence_ssl.files.images import ImageFiles, pixel_digest, to_tensor

RNG = np.random.default_rng(0)


def picture(width: int = 8, height: int = 8) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for name in ("b.png", "a.png", "deep/er/c.png", "deep/d.PNG", "ünï/é.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(root / name, "PNG")
    return root


def zipped(folder: Path) -> Path:
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder).as_posix())
    return target


def listed(folder: Path, header: str | None = "path") -> Path:
    target = folder / "list.csv"
    with target.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        if header:
            rows.writerow([header])
        rows.writerows([path.relative_to(folder)] for path in sorted(folder.rglob("*.[pP]*")))
    return target


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is kept, so that each is read again."""
    monkeypatch.setattr("influence_ssl.files.images.free_memory", lambda device: 0.0)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_folder_is_recursive_sorted_and_counts_other_files(folder: Path) -> None:
    (folder / "notes.txt").write_text("not an image")
    (folder / "._a.png").write_bytes(b"resource fork")
    (folder / ".cache").mkdir()
    picture().save(folder / ".cache" / "thumb.png")
    images = ImageFiles(folder)
    assert images.names == ("a.png", "b.png", "deep/d.PNG", "deep/er/c.png", "ünï/é.png")
    assert images.ignored == {".txt": 1, "hidden": 1}
    assert images.index.tolist() == [0, 1, 2, 3, 4]


def test_items_are_torchvisions_tensors(folder: Path) -> None:
    for (item,), name in zip(ImageFiles(folder), ImageFiles(folder).names, strict=True):
        expected = TF.to_tensor(Image.open(folder / name))
        assert item.dtype == torch.float32
        torch.testing.assert_close(item, expected, rtol=0, atol=0)


def test_zip_and_csv_give_the_items_of_the_folder(folder: Path) -> None:
    expected = ImageFiles(folder)
    for source in (zipped(folder), listed(folder), listed(folder, header=None)):
        images = ImageFiles(source)
        assert sorted(images.names) == list(expected.names)
        for k, name in enumerate(images.names):
            assert torch.equal(images[k][0], expected[expected.names.index(name)][0])


def test_csv_finds_its_column_and_reads_absolute_paths(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(f'\ufeffage,File\n"3",pictures/a.png\n\n"4",{folder / "b.png"}\n')
    images = ImageFiles(table)
    assert images.names == ("pictures/a.png", str(folder / "b.png"))
    assert torch.equal(images[1][0], ImageFiles(folder)[1][0])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("column", ["image_path", "File_Name", "filepath", None])
def test_csvs_of_other_programs(folder: Path, separator: str, column: str | None) -> None:
    """Semicolons and tabs, other names of the column or none, and the slashes of Windows."""
    rows = [["deep\\d.PNG", "3"], ["deep\\er\\c.png", "4"], ["b.png", "5,5"]]
    header = [] if column is None else [["age", column]]
    body = rows if column is None else [row[::-1] for row in rows]
    table = folder / "list.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows(header + body)
    images, whole = ImageFiles(table).readable(strict=True), ImageFiles(folder)
    assert images.names == tuple(row[0] for row in rows)
    for k, name in enumerate(("deep/d.PNG", "deep/er/c.png", "b.png")):
        assert torch.equal(images[k][0], whole[whole.names.index(name)][0])


def test_a_backslash_that_belongs_to_a_name_stays(folder: Path) -> None:
    picture().save(folder / "x\\y.png")
    (folder / "list.csv").write_text("path\nx\\y.png\n")
    ImageFiles(folder / "list.csv").readable(strict=True)


def test_links_to_folders_are_followed_once(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    (other / "sub").mkdir(parents=True)
    for name in ("x.png", "sub/y.png", "z.heic"):
        picture().save(other / name, "PNG")
    (folder / "linked").symlink_to(other)
    (other / "sub" / "round").symlink_to(other)  # circles: to where the link leads,
    (folder / "deep" / "self").symlink_to(folder)  # to the folder itself,
    (other / "up").symlink_to(tmp_path)  # and to what holds both, where nothing is new
    (folder / "aa").symlink_to(folder / "deep")
    (folder / ".hidden").symlink_to(tmp_path)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    images = ImageFiles(folder)
    own = ("a.png", "b.png", "deep/d.PNG", "deep/er/c.png")
    assert images.names == (*own, "linked/sub/y.png", "linked/x.png", "ünï/é.png")
    assert images.ignored == {
        ".heic": 1,
        "without an extension": 1,
        "link(s) to folders that are read anyway": 3,
    }


def test_other_members_of_a_zip_are_counted_by_extension(folder: Path) -> None:
    for name in ("a.heic", "deep/b.HEIC", "c.dng", "readme", "._a.png"):
        (folder / name).touch()
    source = zipped(folder)
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("__MACOSX\\._b.png", b"")
    assert ImageFiles(source).ignored == {
        ".heic": 2, ".dng": 1, "without an extension": 1, "hidden": 2
    }  # fmt: skip


class Buffered:
    """A preprocess that writes to one buffer, slowly, and gives the buffer or a copy of it."""

    def __init__(self, copied: bool, cleared: bool = True) -> None:
        self.buffer = np.zeros((3, 8, 8), np.float32)
        self.copied, self.cleared = copied, cleared

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if self.cleared:
            self.buffer[:] = 0
        for row in range(image.height):
            self.buffer[:, row, : image.width] = np.asarray(image)[row].T / 255
            time.sleep(1e-4)
        return torch.from_numpy(self.buffer.copy() if self.copied else self.buffer)


@pytest.mark.parametrize("copied", [True, False])
def test_a_preprocess_with_a_buffer_gives_what_it_gives_alone(tmp_path: Path, copied: bool) -> None:
    for k in range(40):
        picture().save(tmp_path / f"{k:02}.png")
    expected = torch.stack(
        [Buffered(True)(Image.open(path)) for path in sorted(tmp_path.iterdir())]
    )
    images = ImageFiles(tmp_path, Buffered(copied)).readable()
    batch = in_threads(images.__getitem__, range(40), 4)
    assert torch.equal(torch.stack([item for (item,) in batch]), expected)
    assert torch.equal(torch.stack([images[k][0] for k in range(40)]), expected)


@pytest.mark.parametrize("preprocess", [None, TF.to_tensor])
def test_several_items_have_the_bits_of_each_alone(
    tmp_path: Path, preprocess: Callable[[Image.Image], torch.Tensor] | None
) -> None:
    """Also where one of them has other sides: that is for the caller to refuse."""
    for k, width in enumerate((8, 8, 8, 4)):
        picture(width).save(tmp_path / f"{k}.jpg")
    images = ImageFiles(tmp_path, preprocess)
    alone = [TF.to_tensor(Image.open(path)) for path in sorted(tmp_path.iterdir())]
    for rows in ([0], [2, 0, 1], [0, 3, 1]):
        items = images.__getitems__(rows)
        assert all(torch.equal(x, alone[k]) for k, (x,) in zip(rows, items, strict=True))


def test_a_preprocess_that_remembers_other_images_is_refused(tmp_path: Path) -> None:
    for k, width in enumerate((8, 4, 8, 4)):
        picture(width).save(tmp_path / f"{k}.png")
    ImageFiles(tmp_path, Buffered(True)).readable()
    with pytest.raises(InfluenceValueError, match=r"depends on earlier images: '\d\.png'"):
        ImageFiles(tmp_path, Buffered(True, cleared=False)).readable()


@pytest.mark.parametrize(
    ("preprocess", "together"),
    [
        (None, True),
        (TF.to_tensor, True),
        (transforms.Compose([transforms.Resize(8), transforms.ToTensor()]), True),
        (models.ResNet18_Weights.DEFAULT.transforms(), True),
        (timm.data.create_transform((3, 8, 8)), True),
        (transforms.Compose([transforms.Lambda(TF.to_tensor)]), False),
        (transforms.Compose([transforms.Resize(8), Buffered(True)]), False),
        (lambda image: TF.to_tensor(image), False),
    ],
)
def test_only_transforms_that_keep_nothing_run_side_by_side(
    folder: Path, preprocess: object, together: bool
) -> None:
    assert ImageFiles(folder, preprocess)._apart is not together


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_workers_open_their_own_zip(folder: Path) -> None:
    images = ImageFiles(zipped(folder))
    expected = torch.stack([image for (image,) in images])  # opens the parent's handle
    parent = images._files._handle[1].fp.fileno()
    os.lseek(parent, 7, os.SEEK_SET)
    loader = DataLoader(images, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([batch for (batch,) in loader]), expected)
    # A shared handle would have moved the parent's position, and so broken its next read.
    assert os.lseek(parent, 0, os.SEEK_CUR) == 7


def test_a_data_set_in_use_can_be_pickled(folder: Path) -> None:
    images = ImageFiles(zipped(folder)).readable()
    assert torch.equal(pickle.loads(pickle.dumps(images))[2][0], images[2][0])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_the_rgb_of_pillow(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    picture().convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
        expected = np.asarray(stored.convert("RGB"))
    image = ImageFiles(tmp_path).image(0)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_unreadable_images_are_listed_and_the_others_keep_their_index(folder: Path) -> None:
    shorten(folder / "b.png")
    (folder / "deep" / "d.PNG").write_text("no picture at all")
    (folder / "empty.jpg").touch()
    images = ImageFiles(folder).readable()
    assert images.names == ("a.png", "deep/er/c.png", "ünï/é.png")
    assert images.index.tolist() == [0, 3, 5]
    assert [name for name, _ in images.skipped] == ["b.png", "deep/d.PNG", "empty.jpg"]
    assert images.skipped[1].reason == "not an image of a known format"
    assert images.shape == (3, 8, 8)
    assert images.sha256[2] == hashlib.sha256((folder / "ünï/é.png").read_bytes()).hexdigest()
    assert torch.equal(images[1][0], TF.to_tensor(Image.open(folder / "deep/er/c.png")))


def test_unreadable_members_of_a_zip_are_listed(folder: Path) -> None:
    source = zipped(folder)
    with zipfile.ZipFile(source) as archive:
        start = archive.getinfo("b.png").header_offset
    with source.open("r+b") as file:
        file.seek(start + 60)
        file.write(b"flipped bits")
    images = ImageFiles(source).readable()
    assert [name for name, _ in images.skipped] == ["b.png"]
    assert len(images) == 4


def test_paths_that_are_missing_or_no_files_are_listed(folder: Path) -> None:
    table = listed(folder)
    with table.open("a") as file:
        file.write("gone.png\ndeep\n")
    os.mkfifo(folder / "pipe.png")
    assert dict(ImageFiles(table).readable().skipped) == {
        "gone.png": "no such file or directory",
        "deep": "not a regular file",
    }
    assert dict(ImageFiles(folder).readable().skipped) == {"pipe.png": "not a regular file"}


def test_strict_stops_and_names_the_image(folder: Path) -> None:
    shorten(folder / "b.png")
    with pytest.raises(InfluenceOSError, match=r"'b\.png'.*truncated"):
        ImageFiles(folder).readable(strict=True)


def test_looks_are_those_of_each_picture_alone_by_their_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of several sizes, more of them than are measured together."""
    monkeypatch.setattr("influence_ssl.files.images._AT_ONCE", 3)
    sizes = [(8, 8), (40, 3), (8, 8), (2, 2), (200, 100), (8, 8), (64, 64), (200, 100)]
    for k, size in enumerate(sizes):
        picture(*size).save(tmp_path / f"{k}.png")
    images = ImageFiles(tmp_path, lambda image: TF.to_tensor(image.resize((4, 4)))).readable()
    assert len(images.looks) == len(sizes)
    for path, size, look in zip(sorted(tmp_path.iterdir()), sizes, images.looks, strict=True):
        assert look[:3] == (*size, path.stat().st_size)
        small = Image.open(path)
        small.thumbnail((64, 64), Image.Resampling.BOX)
        red, green, blue = np.moveaxis(np.asarray(small, float), 2, 0)
        bright = (0.241 * red**2 + 0.691 * green**2 + 0.068 * blue**2) ** 0.5 / 255
        grey = np.asarray(small.convert("L"))
        edges = np.asarray(small.convert("L").filter(ImageFilter.FIND_EDGES))[1:-1, 1:-1]
        shares = np.bincount(grey.ravel()) / grey.size
        spread = np.asarray(small, int).max(2) - np.asarray(small, int).min(2)
        expected = (
            bright.mean(),
            *np.quantile(bright, (0.05, 0.99)),
            grey.std() / 255,
            edges.std() if edges.size else 0.0,
            -sum(p * np.log2(p) for p in shares if p),
            spread.max() / 255,
        )
        np.testing.assert_allclose(look[3:], expected, rtol=1e-12, atol=1e-12)


def test_an_item_that_is_kept_is_the_one_that_reading_again_is_compared_with(folder: Path) -> None:
    """Here each image but the first gives another tensor the first time that it is seen."""
    seen: set[bytes] = set()

    def own(image: Image.Image) -> torch.Tensor:
        content = image.tobytes()
        known = content in seen or not seen
        seen.add(content)
        return TF.to_tensor(image) * (1 if known else 2)

    with pytest.raises(InfluenceValueError, match="depends on earlier images"):
        ImageFiles(folder, own).readable()


@pytest.mark.usefixtures("no_memory")
def test_an_image_that_vanishes_during_the_run_is_named(folder: Path) -> None:
    images = ImageFiles(folder).readable()
    (folder / "b.png").unlink()
    with pytest.raises(InfluenceOSError, match=r"'b\.png'.*no such file"):
        images[1]


@pytest.mark.usefixtures("no_memory")
def test_an_image_that_changes_during_the_run_is_named(folder: Path) -> None:
    """Its score would otherwise stand beside the digest of other bytes."""
    images = ImageFiles(folder).readable()
    picture().save(folder / "b.png")
    again = (lambda: images.__getitems__([0, 1]), lambda: images.image(1), images.readable)
    for read in (lambda: images[1], *again):
        with pytest.raises(InfluenceOSError, match=r"'b\.png' in '.*' has changed since it was"):
            read()
    assert len(ImageFiles(folder).readable()) == len(images)


def of_pillow(content: bytes) -> np.ndarray | None:
    """A fast decoder that agrees with Pillow on every processor."""
    if not content.startswith(b"\xff\xd8"):
        return None
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("own", [None, lambda image: TF.to_tensor(image)[:, 1:, 2:]])
def test_items_that_are_kept_are_those_of_the_files_as_first_read(
    folder: Path, own: Callable[[Image.Image], torch.Tensor] | None
) -> None:
    """Also where an image among them cannot be read, and where a caller changes what it got."""
    shorten(folder / "b.png")
    files = ImageFiles(folder, own)
    expected = [files[k][0] for k in (0, 2, 3, 4)]
    images = files.readable()
    for path in folder.rglob("*.[pP]*"):
        path.unlink()
    for _ in range(2):
        alone = [images[k][0] for k in range(4)]
        together = [x for (x,) in images.__getitems__(range(4))]
        for x, *found in zip(expected, alone, together, strict=True):
            assert all(torch.equal(x, one) and one.is_contiguous() for one in found)
        for x in (*alone, *together):
            x.zero_()
    with pytest.raises(IndexError):
        images[4]
    with pytest.raises(InfluenceOSError, match=r"'a\.png'.*no such file"):
        images.image(0)


def test_processes_keep_their_part_of_a_quarter_of_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five images of 8 x 8 pixels in three bytes; the caller's preprocessing gives four each."""
    free, processes = 0.0, 1
    monkeypatch.setattr("influence_ssl.files.images.free_memory", lambda device: free)
    monkeypatch.setattr("influence_ssl.files.images.place", lambda: (0, processes))
    for preprocess, size in ((None, 5 * 192), (TF.to_tensor, 5 * 768)):
        for processes in (1, 3):
            for more in (0, 1):
                free = 4 * processes * size + more
                images = ImageFiles(folder, preprocess).readable()
                assert bool(images._items) == bool(more)
                assert not pickle.loads(pickle.dumps(images))._items


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("preprocess", [None, TF.to_tensor])
def test_the_fast_decoder_changes_no_item(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    preprocess: Callable[[Image.Image], torch.Tensor] | None,
) -> None:
    """Here it errs on one image, as another build of its library might."""
    for k in range(3):
        picture(24, 24).save(tmp_path / f"{k}.jpg", subsampling=k, progressive=k > 1)
    picture(24, 24).convert("L").save(tmp_path / "grey.jpg")
    picture(24, 24).convert("CMYK").save(tmp_path / "ink.jpg")
    picture(24, 24).save(tmp_path / "plain.png")
    paths = sorted(tmp_path.iterdir())
    data = {path.name: path.read_bytes() for path in paths}
    fast, slow = set(), set()

    def erring(content: bytes) -> np.ndarray | None:
        fast.add(content)
        found = of_pillow(content)
        return found if found is None or content != data["1.jpg"] else found ^ 1

    def watched(content: bytes) -> Decoded:
        slow.add(content)
        return decode(content)

    monkeypatch.setattr("influence_ssl.files.images.decode_jpeg", erring)
    monkeypatch.setattr("influence_ssl.files.images.decode", watched)
    images = ImageFiles(tmp_path, preprocess).readable()
    assert set(data.values()) <= slow  # each is first read by Pillow
    fast.clear()
    slow.clear()
    rows = range(len(paths))
    alone = [images[k][0] for k in rows]
    together = [x for (x,) in images.__getitems__(rows)]
    for path, *found in zip(paths, alone, together, strict=True):
        with Image.open(path) as image:
            expected = TF.to_tensor(image.convert("RGB"))
        assert all(torch.equal(x, expected) for x in found)
    assert {data["1.jpg"], data["plain.png"]} <= slow
    assert {data["0.jpg"], data["2.jpg"], data["grey.jpg"]} <= fast
    assert slow.isdisjoint(fast)


@pytest.mark.usefixtures("no_memory")
def test_a_preprocess_of_the_user_s_own_gets_pillow_s_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the file says besides pixels."""
    exif = Image.Exif()
    exif[274] = 6
    picture().save(tmp_path / "a.jpg", exif=exif)
    turned = []

    def own(image: Image.Image) -> torch.Tensor:
        turned.append(image.getexif().get(274))
        return TF.to_tensor(image)

    monkeypatch.setattr("influence_ssl.files.images.decode_jpeg", of_pillow)
    images = ImageFiles(tmp_path, own).readable()
    assert images._jpeg == (True,)
    turned.clear()
    _ = images[0]
    assert turned == [6]


def test_32_bit_grey_is_not_guessed_at(folder: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(folder / "f.tif")
    ((name, reason),) = ImageFiles(folder).readable().skipped
    assert name == "f.tif"
    assert "32-bit" in reason


def test_bytes_in_names_that_are_not_utf8_are_written_out(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xfcber.png", "wb") as file:
        picture().save(file, "PNG")
    images = ImageFiles(tmp_path).readable()
    assert images.names == (r"\xfcber.png",)
    images.names[0].encode("utf-8")


def test_a_zip_that_holds_a_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.png", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.png", b"")
    with pytest.raises(InfluenceValueError, match=r"names 'x.png' twice"):
        ImageFiles(tmp_path / "a.zip")


def test_a_carriage_return_in_a_name_is_written_out(tmp_path: Path) -> None:
    picture().save(tmp_path / "a\rb.png")
    assert ImageFiles(tmp_path).names == ("a\\rb.png",)


def test_mixed_sizes_name_two_images_and_their_sizes(folder: Path) -> None:
    picture(16, 4).save(folder / "c.png")
    with pytest.raises(InfluenceValueError) as caught:
        ImageFiles(folder).readable()
    message = str(caught.value)
    for part in ("'a.png' is 8 x 8 pixels", "'c.png' is 16 x 4 pixels", "preprocess"):
        assert part in message
    resized = ImageFiles(folder, lambda image: to_tensor(image.resize((8, 8)))).readable()
    assert resized.shape == (3, 8, 8)
    with pytest.raises(InfluenceValueError, match=r"'a\.png' is a tensor \(3, 8, 8\)"):
        ImageFiles(folder, lambda image: to_tensor(image)).readable()


@pytest.mark.parametrize("width", [30, 15])  # Pillow itself refuses 300 pixels and warns of 150
def test_an_image_above_pillows_limit_is_listed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    picture(width, 10).save(folder / "c.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for source in (folder, zipped(folder)):
        images = ImageFiles(source).readable()
        assert len(images) == 5
        ((name, reason),) = images.skipped
        assert name == "c.png"
        assert "bomb" in reason
        assert "100 pixels (PIL.Image.MAX_IMAGE_PIXELS)" in reason
        with pytest.raises(InfluenceOSError, match=r"'c\.png'.*bomb"):
            ImageFiles(source).readable(strict=True)


def test_members_that_unpack_to_too_many_bytes_are_not_unpacked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    source = zipped(folder)
    with zipfile.ZipFile(source, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(100_000))
    read = zipfile.ZipFile.read

    def reading(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
        assert member.filename != "zeros.png"
        return read(archive, member)

    monkeypatch.setattr(zipfile.ZipFile, "read", reading)
    ((name, reason),) = ImageFiles(source).readable().skipped
    assert name == "zeros.png"
    assert "bomb" in reason


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "..\\a.png", "C:\\a.png"])
def test_zips_whose_names_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    source = tmp_path / "a.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("fine.png", b"")
        archive.writestr(name, b"")
    with pytest.raises(InfluenceValueError, match=r"unsafe name"):
        ImageFiles(source)


def test_an_encrypted_member_is_listed(folder: Path) -> None:
    source = zipped(folder)
    data = bytearray(source.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the encryption flag of the first entry
    source.write_bytes(data)
    skipped = ImageFiles(source).readable().skipped
    assert len(skipped) == 1
    assert "encrypted" in skipped[0].reason


def test_an_image_alone_is_a_source(folder: Path) -> None:
    whole = ImageFiles(folder).readable()
    alone = ImageFiles(folder / whole.names[1]).readable()
    assert alone.names == (Path(whole.names[1]).name,)
    assert torch.equal(alone[0][0], whole[1][0])
    assert alone.sha256 + alone.pixels == (whole.sha256[1], whole.pixels[1])
    (folder / "empty.png").write_bytes(b"")
    with pytest.raises(InfluenceError, match="none of the 1 images"):
        ImageFiles(folder / "empty.png").readable()


def test_pixels_are_told_apart_whatever_their_file(tmp_path: Path) -> None:
    """The same picture in two files, the same bytes in another shape, and one other value."""
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    other = pixels.copy()
    other[0, 0, 0] += 1
    shown = {"a.png": pixels, "b.bmp": pixels, "c.png": other}
    for name, array in shown.items():
        Image.fromarray(array).save(tmp_path / name)
    found = ImageFiles(tmp_path).readable().pixels
    assert found[0] == found[1] != found[2]
    assert pixel_digest(Image.fromarray(pixels.reshape(2, 8, 3))) != found[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "no such folder, zip or CSV"),
        ("a.zip", b"not a zip", "neither a folder, nor a zip"),
        ("a.zip", b"PK\x05\x06" + bytes(18), "no images"),
        ("a.zip", b"PK\x05\x06\0\0\0\0\1\0\1\0\xff\0\0\0\0\0\0\0\0\0", "damaged zip"),
        ("a.txt", b"", "neither a folder, nor a zip"),
        ("a.csv", b"", "no images"),
        ("a.csv", b"path\n", "no images"),
        ("a.csv", b"age,race\n3,x\n", "no column of paths.*found: age, race"),
        ("a.csv", b"age,path\n3\n", "row 2 has no path"),
        ("a.csv", b"path\n\xff\xfe\n", "not a CSV in UTF-8"),
        ("a.csv", b"path\nx.png\ny.png\n./x.png\n", "names './x.png' twice"),
        ("a.csv", b"path\nd\\x.png\nd/x.png\n", "names 'd/x.png' twice"),
        ("a.csv", b"age;race\n3;x\n", "no column of paths.*found: age;race"),
        ("a.tsv", b"age\tpath\n3\n", "row 2 has no path"),
    ],
)
def test_unusable_sources_are_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    source = tmp_path / name
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(InfluenceError, match=message) as caught:
        ImageFiles(source)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_other_files_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.heic", "b.HEIC", "c.dng"):
        (tmp_path / name).touch()
    with pytest.raises(InfluenceValueError, match=r"no images .*\(it holds 2 \.heic, 1 \.dng\)\.$"):
        ImageFiles(tmp_path)


def test_an_empty_folder_and_one_without_a_readable_image(tmp_path: Path) -> None:
    with pytest.raises(InfluenceValueError, match="no images"):
        ImageFiles(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(InfluenceOSError, match=r"none of the 1 images.*'a\.png'"):
        ImageFiles(tmp_path).readable()


@pytest.mark.parametrize(
    ("preprocess", "error", "message"),
    [
        (lambda image: 1 / 0, InfluenceValueError, "ZeroDivisionError: division by zero"),
        (lambda image: image, InfluenceTypeError, "into a Image"),
        (TF.pil_to_tensor, InfluenceTypeError, r"into a torch\.uint8 tensor"),
        (lambda image: to_tensor(image) / 0, InfluenceValueError, "NaN or infinite"),
        (lambda image: torch.rand(3, 8, 8), InfluenceValueError, "random"),
    ],
)
def test_a_bad_preprocess_is_named_with_the_image(
    folder: Path, preprocess: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        ImageFiles(folder, preprocess).readable()
    assert "'a.png'" in str(caught.value)


def test_a_preprocess_may_return_large_values(folder: Path) -> None:
    """Their sum is infinite."""
    images = ImageFiles(folder, lambda image: to_tensor(image).clamp(0.5, 1) * 3e38).readable()
    assert images[0][0].sum().isinf()


@pytest.mark.parametrize(("side", "workers", "threads"), [(32, None, 0), (64, None, 3), (32, 2, 2)])
def test_small_images_are_tried_without_threads_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, workers: int | None, threads: int
) -> None:
    """Threads would slow each other."""
    monkeypatch.setattr("influence_ssl.ahead.processors", lambda: 3)
    for k in range(40):
        Image.new("RGB", (side, side), (k, 0, 0)).save(tmp_path / f"{k:02}.png")
    seen, together = set(), threading.Barrier(max(threads, 1))

    def watched(data: bytes) -> Decoded:
        here = threading.current_thread()
        if here is not threading.main_thread() and here not in seen:
            seen.add(here)
            together.wait(timeout=60)  # for as many as there are to be
        return decode(data)

    monkeypatch.setattr("influence_ssl.files.images.decode", watched)
    assert len(ImageFiles(tmp_path).readable(workers=workers).names) == 40
    assert len(seen) == threads
