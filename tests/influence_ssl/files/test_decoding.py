"""Images that are not plain RGB of 8 bits, against their 8-bit copies and formulas; fast JPEGs."""

import errno
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from influence_ssl.errors import InfluenceOSError
from influence_ssl.files.decoding import (
    BACKGROUND,
    DEPTHS,
    TooLarge,
    decode,
    decode_jpeg,
    reason,
)
from influence_ssl.files.images import ImageFiles

RNG = np.random.default_rng(0)
DEEP = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def values(mode: str, bits: int = 12, low: int = 0) -> np.ndarray:
    found = RNG.integers(low, 2**bits, (5, 7, DEEP[mode])).astype(np.uint16)
    found[0, 0] = 2**bits - 1
    if mode.endswith("A"):
        found[..., -1] = 2**bits - 1
    return found


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(array: np.ndarray, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of 16 bits per channel with other chunks before and after its pixels."""
    height, width, channels = array.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in array)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            before,
            chunk(b"IDAT", zlib.compress(lines)),
            after,
            chunk(b"IEND", b""),
        ]
    )


def tiff(
    array: np.ndarray,
    order: str = "<",
    deflate: bool = False,
    bits: int = 16,
    opacity: int | None = None,
    planes: int = 1,
    orientation: int = 1,
) -> bytes:
    """A TIFF of one strip per image, with the given byte order; ``opacity`` as in ExtraSamples."""
    height, width, channels = array.shape
    pixels = array.astype(order + "u2").tobytes() if bits == 16 else packed(array)
    pixels = zlib.compress(pixels) if deflate else pixels
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, None),
        (259, 3, 1, 8 if deflate else 1), (262, 3, 1, 2 if channels > 2 else 1),
        (273, 4, 1, None), (274, 3, 1, orientation), (277, 3, 1, channels), (278, 3, 1, height),
        (279, 4, 1, len(pixels)), (284, 3, 1, planes),
    ]  # fmt: skip
    if opacity is not None:
        tags.append((338, 3, 1, opacity))
    depths = 8 + 2 + 12 * len(tags) + 4
    start = depths + 2 * channels
    parts = [b"II*\0" if order == "<" else b"MM\0*", struct.pack(order + "IH", 8, len(tags))]
    for tag, kind, count, value in tags:
        parts.append(struct.pack(order + "HHI", tag, kind, count))
        if tag == 258:
            inline = struct.pack(order + "HH", bits, 0)
            parts.append(inline if channels == 1 else struct.pack(order + "I", depths))
        elif tag == 273:
            parts.append(struct.pack(order + "I", start))
        else:
            parts.append(struct.pack(order + ("HH" if kind == 3 else "I"), *[value, 0][: 5 - kind]))
    parts += [struct.pack(order + "I", 0), struct.pack(f"{order}{channels}H", *[bits] * channels)]
    return b"".join([*parts, pixels])


def packed(array: np.ndarray) -> bytes:
    """Rows of 12-bit values, each row filled up to whole bytes."""
    rows = []
    for row in array[..., 0]:
        text = "".join(f"{value:012b}" for value in row)
        rows.append(int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8)))
    return b"".join(rows)


def pgm(array: np.ndarray, largest: int) -> bytes:
    height, width, channels = array.shape
    head = f"{'P5' if channels == 1 else 'P6'}\n{width} {height}\n{largest}\n".encode()
    return head + array.astype(">u2").tobytes()


def upper(array: np.ndarray, bits: int) -> np.ndarray:
    """The 8-bit copy as RGB, without opacity."""
    small = (array >> (bits - 8)).astype(np.uint8)
    colours = small[..., :1] if array.shape[2] < 3 else small[..., :3]
    return np.broadcast_to(colours, (*array.shape[:2], 3))


FILES: dict[str, Callable[[str, np.ndarray], bytes]] = {
    "png": lambda mode, v: png(v),
    "tiff": lambda mode, v: tiff(v, opacity=2 if mode == "RGBA" else None),
    "tiff, big-endian": lambda mode, v: tiff(v, ">", opacity=2 if mode == "RGBA" else None),
    "tiff, deflated": lambda mode, v: tiff(v, "<", True, opacity=2 if mode == "RGBA" else None),
    "tiff, both": lambda mode, v: tiff(v, ">", True, opacity=2 if mode == "RGBA" else None),
    "portable map": lambda mode, v: pgm(v, 65535),
}
CASES = [
    (form, mode)
    for form in FILES
    for mode in DEEP
    if not (form.startswith("tiff") and mode == "LA")
    and not (form == "portable map" and mode in ("LA", "RGBA"))
]


@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize(("form", "mode"), CASES)
def test_fewer_bits_in_16_give_the_8_bit_copy(
    tmp_path: Path, form: str, mode: str, bits: int
) -> None:
    array = values(mode, bits)
    (tmp_path / f"a.{ {'png': 'png', 'por': 'ppm', 'tif': 'tif'}[form[:3]] }").write_bytes(
        FILES[form](mode, array)
    )
    images = ImageFiles(tmp_path).readable()
    np.testing.assert_array_equal(np.asarray(images.image(0)), upper(array, bits))
    assert images.bits == bits
    assert images.converted[f"of 16 bits ({bits} in use)"] == 1


def test_one_number_of_bits_holds_for_the_whole_data_set(tmp_path: Path) -> None:
    """A dark image beside a bright one stays dark, in whatever order and form they are read."""
    dark, bright = values("L", 9), values("RGB", 12)
    (tmp_path / "a.png").write_bytes(png(dark))
    (tmp_path / "b.tif").write_bytes(tiff(bright))
    Image.fromarray(np.full((5, 7, 3), 255, np.uint8)).save(tmp_path / "c.png")
    (tmp_path / "d.png").write_bytes(png(values("L", 16))[:70])  # not readable, so not counted
    for images in (ImageFiles(tmp_path), ImageFiles(tmp_path).readable()):
        np.testing.assert_array_equal(np.asarray(images.image(0)), upper(dark, 12))
        np.testing.assert_array_equal(np.asarray(images.image(1)), upper(bright, 12))
        assert np.asarray(images.image(2)).min() == 255
        assert images.bits == 12


def test_images_that_come_out_nearly_black_are_told(tmp_path: Path) -> None:
    for k, bits in enumerate((16, 16, 12)):
        (tmp_path / f"{k}.png").write_bytes(png(values("L", bits)))
    assert ImageFiles(tmp_path).readable().converted == {
        "grey": 3,
        "of 16 bits (16 in use)": 2,
        "of 16 bits (16 in use, nearly black: 12 would suffice)": 1,
    }


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_rotations_of_exif_are_counted_and_not_applied(tmp_path: Path, suffix: str) -> None:
    """As Pillow writes them; orientation 1 and a missing or damaged tag are none."""
    image = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image.save(tmp_path / f"{orientation}{suffix}", exif=exif)
    image.save(tmp_path / f"none{suffix}")
    image.save(tmp_path / f"torn{suffix}", exif=b"Exif\0\0II*\0\xff")
    images = ImageFiles(tmp_path).readable()
    assert images.rotated == 7
    assert images.converted == {}
    assert {images.image(k).size for k in range(len(images))} == {(7, 5)}
    if suffix == ".png":
        for k in range(8):
            np.testing.assert_array_equal(np.asarray(images.image(k)), np.asarray(image))


def test_rotations_of_xmp_are_counted_as_pillow_finds_them(tmp_path: Path) -> None:
    """Where EXIF has none, Pillow's ImageOps.exif_transpose turns the image as XMP says."""
    image = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8))
    for orientation in (1, 6):
        xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp)
        image.save(tmp_path / f"{orientation}.png", pnginfo=text)
        image.save(tmp_path / f"{orientation}.jpg", xmp=xmp.encode())
        image.save(tmp_path / f"{orientation}.webp", xmp=xmp.encode())
    turned = 0
    for path in tmp_path.iterdir():
        with Image.open(path) as found:
            turned += ImageOps.exif_transpose(found).size != found.size
    assert ImageFiles(tmp_path).readable().rotated == turned == 3


@pytest.mark.parametrize("turns", [{1: 0}, {3: 2}, {6: 3, 8: 1}])
def test_the_rotation_of_a_tiff_is_applied_and_not_counted(
    tmp_path: Path, turns: dict[int, int]
) -> None:
    """Of 8 or 16 bits, packed or not: Pillow turns the pixels when it reads a TIFF."""
    array = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    grey, deep = array[..., :1], array.astype(np.uint16) * 257
    for orientation in turns:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for name, packing in (("plain", None), ("lzw", "tiff_lzw")):
            path = tmp_path / f"{name}-{orientation}.tif"
            Image.fromarray(array).save(path, exif=exif, compression=packing)
        for deflate in (False, True):
            for name, pixels in (("deep", deep), ("grey", deep[..., :1])):
                path = tmp_path / f"{name}{deflate}-{orientation}.tif"
                path.write_bytes(tiff(pixels, deflate=deflate, orientation=orientation))
    images = ImageFiles(tmp_path).readable()
    assert (len(images), images.rotated) == (6 * len(turns), 0)
    for k, name in enumerate(images.names):
        stored = np.repeat(grey, 3, 2) if name.startswith("grey") else array
        expected = np.rot90(stored, turns[int(name[-5])])
        np.testing.assert_array_equal(np.asarray(images.image(k)), expected)


def test_the_rotation_of_a_png_of_16_bits_is_found(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    tag = chunk(b"eXIf", exif.tobytes()[6:])
    (tmp_path / "before.png").write_bytes(png(values("RGB"), before=tag))
    (tmp_path / "after.png").write_bytes(png(values("RGB"), after=tag))
    assert ImageFiles(tmp_path).readable().rotated == 2


def test_the_bits_that_a_file_declares_are_its_own(tmp_path: Path) -> None:
    """A TIFF of 12 bits and a map up to 4095 are as bright beside a PNG of 16 bits as alone."""
    array = values("L", 12)
    (tmp_path / "a.tif").write_bytes(tiff(array, bits=12))
    (tmp_path / "b.pgm").write_bytes(pgm(array, 4095))
    (tmp_path / "c.png").write_bytes(png(values("L", 16)))
    images = ImageFiles(tmp_path)
    assert images.image(2) is not None
    for k in (0, 1):
        np.testing.assert_array_equal(np.asarray(images.image(k)), upper(array, 12))


def test_sbit_does_not_change_values_that_the_standard_has_scaled(tmp_path: Path) -> None:
    """PNG (third edition, 11.3.2.5): samples fill all 16 bits, sBIT says how many were measured."""
    array = values("L", 12)
    scaled = array << 4 | array >> 8
    (tmp_path / "a.png").write_bytes(png(scaled, before=chunk(b"sBIT", b"\x0c")))
    np.testing.assert_array_equal(np.asarray(ImageFiles(tmp_path).image(0)), upper(array, 12))


@pytest.mark.parametrize("deflate", [True, False])
def test_colours_in_separate_planes_are_listed(tmp_path: Path, deflate: bool) -> None:
    array = values("RGB", 16)
    (tmp_path / "a.tif").write_bytes(tiff(array, deflate=deflate, planes=2))
    with pytest.raises(InfluenceOSError, match="separate planes"):
        ImageFiles(tmp_path).image(0)


def over_grey(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    share = opacity[..., None] / 255
    return share * colours + (1 - share) * np.array(BACKGROUND)


@pytest.mark.parametrize("form", ["RGBA", "LA", "PA", "P", "RGB", "WEBP", "GIF"])
def test_cut_outs_lie_on_mid_grey(tmp_path: Path, form: str) -> None:
    """Two cut-outs that differ only beneath their transparent pixels are one image."""
    opacity = RNG.integers(0, 256, (6, 6), dtype=np.uint8)
    opacity[:3] = 0
    found = []
    for k in range(2):
        colours = np.full((6, 6, 3), 200, np.uint8)
        colours[:3] = 10 + 90 * k
        path = tmp_path / f"{k}.{form.lower() if form in ('WEBP', 'GIF') else 'png'}"
        image = Image.fromarray(np.dstack([colours, opacity]))
        if form == "LA":
            image = image.convert("LA")
        if form in ("P", "PA", "GIF", "RGB"):
            opacity = np.where(opacity, 255, 0).astype(np.uint8)
        if form in ("P", "PA", "GIF"):
            # One colour of the palette is transparent, or half so.
            image = Image.fromarray(np.where(opacity, 1, 0).astype(np.uint8), "P")
            image.putpalette([10 + 90 * k] * 3 + [200] * 3)
            how = {"transparency": b"\x00\x80" if form == "PA" else 0}
            opacity = np.where(opacity, 128 if form == "PA" else 255, 0).astype(np.uint8)
            image.save(path, **how)
        elif form == "RGB":
            Image.fromarray(colours).save(path, transparency=(10 + 90 * k,) * 3)
        else:
            image.save(path, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
        found.append(np.asarray(ImageFiles(path.parent).image(k)).astype(float))
        np.testing.assert_allclose(found[k], over_grey(colours, opacity), atol=1)
    np.testing.assert_array_equal(*found)
    assert ImageFiles(tmp_path).readable().converted["with transparency (placed on mid-grey)"] == 2


def test_cut_outs_of_16_bits_lie_on_mid_grey(tmp_path: Path) -> None:
    array = values("RGBA", 12, low=100)
    array[:2, :, 3] = 0
    array[2, :, 3] = 2048
    (tmp_path / "a.png").write_bytes(png(array))
    (tmp_path / "b.tif").write_bytes(tiff(array, opacity=2))
    premultiplied = array.copy()
    premultiplied[..., :3] = (array[..., :3].astype(int) * array[..., 3:] / 4095).round()
    (tmp_path / "c.tif").write_bytes(tiff(premultiplied, opacity=1))
    key = array[3, 3, :3]
    hidden = (array[..., :3] == key).all(2)
    (tmp_path / "d.png").write_bytes(
        png(array[..., :3], chunk(b"tRNS", key.astype(">u2").tobytes()))
    )
    expected = over_grey((array[..., :3] >> 4).astype(float), (array[..., 3] >> 4).astype(float))
    images = ImageFiles(tmp_path)
    for k, slack in enumerate((1, 1, 3)):
        np.testing.assert_allclose(np.asarray(images.image(k)).astype(float), expected, atol=slack)
    keyed = over_grey((array[..., :3] >> 4).astype(float), np.where(hidden, 0, 255))
    np.testing.assert_array_equal(np.asarray(images.image(3)), keyed)


def test_full_opacity_of_16_bits_beside_colours_of_12(tmp_path: Path) -> None:
    array = values("RGBA", 12)
    array[..., 3] = 65535
    for data in (png(array), tiff(array, opacity=2), tiff(array, opacity=1)):
        (tmp_path / "a.png").write_bytes(data)
        np.testing.assert_array_equal(np.asarray(ImageFiles(tmp_path).image(0)), upper(array, 12))


@pytest.mark.parametrize("channels", [1, 3])
def test_only_pixels_that_have_every_value_of_the_key_are_transparent(channels: int) -> None:
    array = np.full((1, channels + 2, channels), 7 << 8, np.uint16)
    for k in range(channels):
        array[0, k, k] = 200 << 8
    array[0, -1] = 90 << 8
    key = array[0, channels]
    image, kinds = decode(png(array, chunk(b"tRNS", key.astype(">u2").tobytes()))).rgb()
    expected = upper(array, 16).copy()
    expected[0, channels] = BACKGROUND
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert "with transparency (placed on mid-grey)" in kinds


def test_values_above_the_bits_in_use_are_white() -> None:
    array = values("RGB", 16)
    image, _ = decode(png(array)).rgb(12)
    np.testing.assert_array_equal(np.asarray(image), np.minimum(array // 16, 255))


def test_a_fourth_channel_without_meaning_is_left_out() -> None:
    """ExtraSamples 0 of a TIFF."""
    array = values("RGBA", 16)
    array[..., 3] = 0
    image, _ = decode(tiff(array, opacity=0)).rgb()
    np.testing.assert_array_equal(np.asarray(image), upper(array, 16))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("largest", [255, 4095])
def test_dark_portable_maps_stay_dark(tmp_path: Path, mode: str, largest: int) -> None:
    """The largest value that the file declares is white, not the largest that it holds."""
    array = RNG.integers(0, largest // 16, (5, 7, DEEP[mode])).astype(np.uint16)
    data = pgm(array, largest)
    if largest < 256:
        data = data[: -2 * array.size] + array.astype(np.uint8).tobytes()
    (tmp_path / "a.ppm").write_bytes(data)
    expected = np.broadcast_to(array * (255 / largest), (5, 7, 3))
    found = np.asarray(ImageFiles(tmp_path).image(0)).astype(float)
    np.testing.assert_allclose(found, expected, atol=0 if largest < 256 else 1)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_grey_values_of_32_bits_are_refused(kind: type) -> None:
    data = io.BytesIO()
    Image.fromarray(np.arange(12).reshape(3, 4).astype(kind)).save(data, "TIFF")
    with pytest.raises(ValueError, match="no fixed range"):
        decode(data.getvalue())


@pytest.mark.parametrize("form", ["BMP", "PNG", "PPM", "TIFF", "WEBP", "JPEG2000"])
def test_lossless_formats_give_the_pixels_that_were_saved(form: str) -> None:
    array = RNG.integers(0, 256, (33, 47, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(array).save(data, form, **({"lossless": True} if form == "WEBP" else {}))
    np.testing.assert_array_equal(np.asarray(decode(data.getvalue()).rgb()[0]), array)


@pytest.mark.parametrize("form", ["EPS", "ICO", "TGA"])
def test_other_formats_of_pillow_are_refused(form: str) -> None:
    """Whatever the file is called; EPS would start Ghostscript."""
    data = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8)).save(data, form)
    with pytest.raises(UnidentifiedImageError) as error:
        decode(data.getvalue())
    assert reason(error.value) == "not an image of a known format"


@pytest.mark.parametrize("action", ["ignore", "error"])
@pytest.mark.parametrize("pixels", [100, 101, 200, 201])
def test_images_above_pillow_s_limit_are_too_large(
    monkeypatch: pytest.MonkeyPatch, pixels: int, action: str
) -> None:
    """From the first pixel above it, whatever is done with Pillow's warning."""
    data = io.BytesIO()
    Image.new("RGB", (pixels, 1), (1, 2, 3)).save(data, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter(action, Image.DecompressionBombWarning)
        if pixels > 100:
            with pytest.raises(TooLarge):
                decode(data.getvalue())
        else:
            assert decode(data.getvalue()).rgb()[0].size == (100, 1)


def test_the_reason_of_a_system_error_is_that_of_the_system() -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/folder/a.png")
    assert reason(error) == "permission denied"
    assert reason(OSError("image file is truncated")) == "image file is truncated"


def test_each_way_of_converting_is_counted(tmp_path: Path) -> None:
    picture = Image.fromarray(RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    for k, mode in enumerate(("RGB", "L", "1", "P", "CMYK")):
        picture.convert(mode).save(tmp_path / f"{k}.{'tif' if mode == 'CMYK' else 'png'}")
    picture.save(tmp_path / "5.png", save_all=True, append_images=[picture.rotate(90)])
    picture.save(tmp_path / "6.tif", save_all=True, append_images=[picture.rotate(90)])
    data = picture.quantize(16)
    data.save(tmp_path / "7.gif", save_all=True, append_images=[data.rotate(90)])
    assert ImageFiles(tmp_path).readable().converted == {
        "grey": 2,
        "palette": 2,
        "CMYK": 1,
        "of several frames (the first is read)": 3,
    }


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("place", ["before", "after"])
def test_long_texts_of_a_png_do_not_matter(tmp_path: Path, compressed: bool, place: str) -> None:
    long = b"x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1)
    many = PngImagePlugin.MAX_TEXT_MEMORY // len(long) + 2
    kind, data = (
        (b"zTXt", b"a\0\0" + zlib.compress(long)) if compressed else (b"tEXt", b"a\0" + long)
    )
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(long))
    array = values("L", 16)
    texts = {place: chunk(kind, data) * (1 if compressed else many)}
    (tmp_path / "a.png").write_bytes(png(array, **texts))
    (tmp_path / "b.png").write_bytes(png(array, before=profile))
    images = ImageFiles(tmp_path).readable(strict=True)
    for k in range(2):
        np.testing.assert_array_equal(np.asarray(images.image(k)), upper(array, 16))


def jpeg(mode: str = "RGB", size: tuple[int, int] = (33, 47), **settings: object) -> bytes:
    coarse = Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8))
    data = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(data, "JPEG", **settings)
    return data.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 47), (7, 200)])
def test_the_fast_decoder_gives_pillow_s_pixels(
    mode: str, size: tuple[int, int], subsampling: int, progressive: bool
) -> None:
    """Or none, as for CMYK; two builds of libjpeg-turbo may differ by a rounding."""
    for quality in (30, 95):
        data = jpeg(mode, size, subsampling=subsampling, progressive=progressive, quality=quality)
        expected = np.asarray(decode(data).rgb()[0]).astype(int)
        found = decode_jpeg(data)
        assert found is not None or mode == "CMYK"
        if found is not None:
            assert found.dtype == np.uint8
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 2


def test_the_fast_decoder_leaves_other_and_damaged_files_to_pillow(
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = jpeg()
    for other in (data[: len(data) // 2], b"", png(values("RGB")), b"BM" + data):
        assert decode_jpeg(other) is None
    refused = 0
    for place in range(data.index(b"\xff\xda") + 14, len(data) - 6, 20):
        torn = data[:place] + bytes(4) + data[place + 4 :]  # of which Pillow shows what it can
        image, found = decode(torn).image, decode_jpeg(torn)
        refused += found is None
        assert found is None or found.shape == np.asarray(image).shape
    assert refused > 0
    assert capfd.readouterr() == ("", "")
