"""The reader against Pillow, zipfile, hashlib and torchvision, and every source it must refuse."""

import csv
import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional as TF

from influence_ssl.errors import (
    InfluenceError,
    InfluenceOSError,
    InfluenceTypeError,
    InfluenceValueError,
)
from influence_ssl.images import Images, to_tensor

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


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_folder_is_recursive_sorted_and_counts_other_files(folder: Path) -> None:
    (folder / "notes.txt").write_text("not an image")
    (folder / "._a.png").write_bytes(b"resource fork")
    (folder / ".cache").mkdir()
    picture().save(folder / ".cache" / "thumb.png")
    images = Images(folder)
    assert images.names == ("a.png", "b.png", "deep/d.PNG", "deep/er/c.png", "ünï/é.png")
    assert images.ignored == 2
    assert images.index.tolist() == [0, 1, 2, 3, 4]


def test_items_are_torchvisions_tensors(folder: Path) -> None:
    for (item,), name in zip(Images(folder), Images(folder).names, strict=True):
        expected = TF.to_tensor(Image.open(folder / name))
        assert item.dtype == torch.float32
        torch.testing.assert_close(item, expected, rtol=0, atol=0)


def test_zip_and_csv_give_the_items_of_the_folder(folder: Path) -> None:
    expected = Images(folder)
    for source in (zipped(folder), listed(folder), listed(folder, header=None)):
        images = Images(source)
        assert sorted(images.names) == list(expected.names)
        for k, name in enumerate(images.names):
            assert torch.equal(images[k][0], expected[expected.names.index(name)][0])


def test_csv_finds_its_column_and_reads_absolute_paths(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(f'\ufeffage,File\n"3",pictures/a.png\n\n"4",{folder / "b.png"}\n')
    images = Images(table)
    assert images.names == ("pictures/a.png", str(folder / "b.png"))
    assert torch.equal(images[1][0], Images(folder)[1][0])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_workers_open_their_own_zip(folder: Path) -> None:
    images = Images(zipped(folder))
    expected = torch.stack([image for (image,) in images])  # opens the parent's handle
    parent = images._files._handle[1].fp.fileno()
    os.lseek(parent, 7, os.SEEK_SET)
    loader = DataLoader(images, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([batch for (batch,) in loader]), expected)
    # A shared handle would have moved the parent's position, and so broken its next read.
    assert os.lseek(parent, 0, os.SEEK_CUR) == 7


def test_a_data_set_in_use_can_be_pickled(folder: Path) -> None:
    images = Images(zipped(folder)).readable()
    assert torch.equal(pickle.loads(pickle.dumps(images))[2][0], images[2][0])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_the_rgb_of_pillow(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    picture().convert(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
        expected = np.asarray(stored.convert("RGB"))
    image = Images(tmp_path).image(0)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_transparent_palettes_lose_their_alpha_channel(tmp_path: Path) -> None:
    palette = picture().convert("P")
    palette.save(tmp_path / "a.png", transparency=bytes(range(256)))
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(Images(tmp_path).image(0)), expected)


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_grey_keeps_its_upper_byte(tmp_path: Path, byte_order: str) -> None:
    values = np.array([[0, 255, 256, 40000, 65535]], dtype=byte_order)
    Image.fromarray(values).save(tmp_path / "a.tif")
    grey = np.asarray(Images(tmp_path).image(0))
    np.testing.assert_array_equal(grey, np.repeat(values[..., None] // 256, 3, axis=2))


def test_16_bit_portable_maps_keep_their_upper_byte(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 40000, 65535]], ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 5 1 65535\n" + values.tobytes())
    grey = np.asarray(Images(tmp_path).image(0))
    np.testing.assert_array_equal(grey, np.repeat(values[..., None] // 256, 3, axis=2))


def test_unreadable_images_are_listed_and_the_others_keep_their_index(folder: Path) -> None:
    shorten(folder / "b.png")
    (folder / "deep" / "d.PNG").write_text("no picture at all")
    (folder / "empty.jpg").touch()
    images = Images(folder).readable()
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
    images = Images(source).readable()
    assert [name for name, _ in images.skipped] == ["b.png"]
    assert len(images) == 4


def test_paths_that_are_missing_or_no_files_are_listed(folder: Path) -> None:
    table = listed(folder)
    with table.open("a") as file:
        file.write("gone.png\ndeep\n")
    os.mkfifo(folder / "pipe.png")
    assert dict(Images(table).readable().skipped) == {
        "gone.png": "no such file or directory",
        "deep": "not a regular file",
    }
    assert dict(Images(folder).readable().skipped) == {"pipe.png": "not a regular file"}


def test_strict_stops_and_names_the_image(folder: Path) -> None:
    shorten(folder / "b.png")
    with pytest.raises(InfluenceOSError, match=r"'b\.png'.*truncated"):
        Images(folder).readable(strict=True)


def test_an_image_that_vanishes_during_the_run_is_named(folder: Path) -> None:
    images = Images(folder).readable()
    (folder / "b.png").unlink()
    with pytest.raises(InfluenceOSError, match=r"'b\.png'.*no such file"):
        images[1]


def test_32_bit_grey_is_not_guessed_at(folder: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(folder / "f.tif")
    ((name, reason),) = Images(folder).readable().skipped
    assert name == "f.tif"
    assert "32-bit" in reason


def test_bytes_in_names_that_are_not_utf8_are_written_out(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xfcber.png", "wb") as file:
        picture().save(file, "PNG")
    images = Images(tmp_path).readable()
    assert images.names == (r"\xfcber.png",)
    images.names[0].encode("utf-8")


def test_a_zip_that_holds_a_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.png", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.png", b"")
    with pytest.raises(InfluenceValueError, match=r"names 'x.png' twice"):
        Images(tmp_path / "a.zip")


def test_a_carriage_return_in_a_name_is_written_out(tmp_path: Path) -> None:
    picture().save(tmp_path / "a\rb.png")
    assert Images(tmp_path).names == ("a\\rb.png",)


def test_mixed_sizes_name_two_images_and_their_sizes(folder: Path) -> None:
    picture(16, 4).save(folder / "c.png")
    with pytest.raises(InfluenceValueError) as caught:
        Images(folder).readable()
    message = str(caught.value)
    for part in ("'a.png' is 8 x 8 pixels", "'c.png' is 16 x 4 pixels", "preprocess"):
        assert part in message
    resized = Images(folder, lambda image: to_tensor(image.resize((8, 8)))).readable()
    assert resized.shape == (3, 8, 8)
    with pytest.raises(InfluenceValueError, match=r"'a\.png' is a tensor \(3, 8, 8\)"):
        Images(folder, lambda image: to_tensor(image)).readable()


def test_decompression_bombs_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    # Pillow itself refuses 300 pixels and only warns of 150.
    for width in (30, 15):
        picture(width, 10).save(folder / "c.png")
        with pytest.raises(InfluenceValueError, match=r"'c\.png'.*bomb"):
            Images(folder).readable()


def test_members_that_unpack_to_too_many_bytes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    source = tmp_path / "a.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(100_000))
    assert source.stat().st_size < 1000
    with pytest.raises(InfluenceValueError, match=r"'zeros\.png'.*bomb"):
        Images(source).readable()


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png", "..\\a.png", "C:\\a.png"])
def test_zips_whose_names_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    source = tmp_path / "a.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("fine.png", b"")
        archive.writestr(name, b"")
    with pytest.raises(InfluenceValueError, match=r"unsafe name"):
        Images(source)


def test_an_encrypted_member_is_listed(folder: Path) -> None:
    source = zipped(folder)
    data = bytearray(source.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the encryption flag of the first entry
    source.write_bytes(data)
    skipped = Images(source).readable().skipped
    assert len(skipped) == 1
    assert "encrypted" in skipped[0].reason


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "no such folder, zip or CSV"),
        ("a.zip", b"not a zip", "neither a folder, nor a zip"),
        ("a.zip", b"PK\x05\x06" + bytes(18), "no images"),
        ("a.zip", b"PK\x05\x06\0\0\0\0\1\0\1\0\xff\0\0\0\0\0\0\0\0\0", "damaged zip"),
        ("a.png", b"", "neither a folder, nor a zip"),
        ("a.csv", b"", "no images"),
        ("a.csv", b"path\n", "no images"),
        ("a.csv", b"age,race\n3,x\n", "no column of paths.*found: age, race"),
        ("a.csv", b"age,path\n3\n", "row 2 has no path"),
        ("a.csv", b"path\n\xff\xfe\n", "not a CSV in UTF-8"),
        ("a.csv", b"path\nx.png\ny.png\n./x.png\n", "names './x.png' twice"),
    ],
)
def test_unusable_sources_are_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    source = tmp_path / name
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(InfluenceError, match=message) as caught:
        Images(source)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder_and_one_without_a_readable_image(tmp_path: Path) -> None:
    with pytest.raises(InfluenceValueError, match="no images"):
        Images(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(InfluenceOSError, match=r"none of the 1 images.*'a\.png'"):
        Images(tmp_path).readable()


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
        Images(folder, preprocess).readable()
    assert "'a.png'" in str(caught.value)
