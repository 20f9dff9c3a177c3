"""Decodes the bytes of an image file to 8-bit RGB and records what had to be converted.

Grey values are repeated, palettes are looked up, and an animation is reduced to its first frame.
Transparent pixels show :data:`BACKGROUND`, because the colours beneath them were never meant to be
seen. If values have more than 8 bits, the upper 8 of the bits in use are kept. The bits in use are
those that the file declares (TIFF's BitsPerSample, a portable map's largest value) or else those
that the caller names, because many files hold 12 bits in 16 without declaring it. PNG's sBIT chunk
is ignored: the standard scales values to all 16 bits regardless. TIFF's MaxSampleValue is ignored
too, because it must not change how an image looks. Like torchvision and timm, this module does not
apply orientation tags; :func:`rotated` identifies the images that have one. Pillow itself applies
those of TIFF.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16

from influence_ssl.errors import one_line

try:
    import simplejpeg
    from PIL import ExifTags, Image, UnidentifiedImageError
except ModuleNotFoundError as error:
    raise ImportError(
        f"reading image files needs {error.name}; pip install 'influence-ssl[report]'."
    ) from error

BACKGROUND = (128, 128, 128)
"""The background of transparent pixels: mid-grey, on which white and black drawings both show."""

DEPTHS = (8, 10, 12, 14, 16)
"""The usual bit depths, one of which is assumed if a file declares none."""

# A sixteenth of the range is nearly black.
_DARK = 4
# The formats behind the extensions that are read. Pillow's others stay disabled; EPS, for one,
# starts Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_BITS_PER_SAMPLE, _PLANES = 258, 284
# The orientations of EXIF but 1, which is as stored.
_ROTATED = range(2, 9)
_PLAIN = ("RGB", "RGBA", "RGBa", "RGBX")
_KINDS = {"1": "grey", "L": "grey", "LA": "grey", "I": "grey", "P": "palette", "PA": "palette"}


class TooLarge(ValueError):
    """An image with more pixels than Pillow permits; it is not decoded."""

    def __init__(self, what: str = "it unpacks to") -> None:
        super().__init__(
            f"too large, maybe a decompression bomb: {what} more than {Image.MAX_IMAGE_PIXELS:,} "
            "pixels (PIL.Image.MAX_IMAGE_PIXELS)"
        )


class Decoded(NamedTuple):
    """An image as its file stores it.

    ``image`` has 8 bits per channel and any mode. It is None if there are more bits; then
    ``values`` (h, w, c) holds the values and ``mode`` is that of the channels. ``bits``: the bits
    in use, or None if the file does not declare them. ``key``: the values of a transparent pixel.
    ``kinds``: how the image differs from plain 8-bit RGB, in words.
    """

    image: Image.Image | None
    kinds: tuple[str, ...]
    mode: str = ""
    values: UInt16[np.ndarray, "h w c"] | None = None
    bits: int | None = None
    key: tuple[int, ...] | None = None

    @property
    def undeclared(self) -> bool:
        """Whether :meth:`rgb` needs to be told the bits in use."""
        return self.values is not None and self.bits is None

    def needed(self) -> int:
        """The smallest of :data:`DEPTHS` that holds the largest value, except transparency."""
        assert self.values is not None
        largest = int(self.values[..., : _colours(self.mode)].max()).bit_length()
        return next(bits for bits in DEPTHS if bits >= largest)

    def rgb(self, bits: int = 16) -> tuple[Image.Image, tuple[str, ...]]:
        """(the image in mode RGB, its kinds); ``bits`` are assumed if the file declares none."""
        image, kinds = self.image, list(self.kinds)
        if image is None:
            bits = self.bits or bits
            image = self._eight_bits(bits)
            kinds.append(self._depth(bits))
        if not image.has_transparency_data:
            return image.convert("RGB"), tuple(kinds)
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            return image.convert("RGB"), tuple(kinds)
        ground = Image.new("RGBA", image.size, BACKGROUND)
        flat = Image.alpha_composite(ground, image).convert("RGB")
        return flat, (*kinds, "with transparency (placed on mid-grey)")

    def _depth(self, bits: int) -> str:
        if not self.undeclared:
            return f"of {bits} bits"
        needed = self.needed()
        dark = f", nearly black: {needed} would suffice" if bits - needed >= _DARK else ""
        return f"of 16 bits ({bits} in use{dark})"

    def _eight_bits(self, bits: int) -> Image.Image:
        assert self.values is not None
        colours = _colours(self.mode)
        small = (self.values >> (bits - 8)).clip(max=255).astype(np.uint8)
        # Opacity may have all 16 bits where the colours have fewer.
        opacity = self.values[..., colours:]
        if opacity.size and int(opacity.max()).bit_length() > bits:
            small[..., colours:] = opacity >> 8
        mode = self.mode
        if self.key is not None:
            shown = (self.values != np.array(self.key)).any(2)
            small = np.dstack([small, 255 * shown.astype(np.uint8)])
            mode += "A"
        height, width = small.shape[:2]
        return Image.frombytes(mode, (width, height), small.tobytes())


def _colours(mode: str) -> int:
    """How many of a mode's channels are colours and not opacity."""
    return len(mode.rstrip("Aa"))


def decode(data: bytes) -> Decoded:
    """The image in a file's bytes; raises whatever its decoder raises.

    Raises :class:`TooLarge` if it has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    data = _without_text(data)
    image = _open(data)
    mode = image.mode.split(";")[0]
    kinds = [] if mode in _PLAIN else [_KINDS.get(mode, mode)]
    if _has_more_frames(image, data):
        kinds.append("of several frames (the first is read)")
    raw = [_raw(tile.args) for tile in image.tile]
    if image.format == "PPM":
        if (found := _portable(image, data, kinds)) is not None:
            return found
    elif image.format in ("PNG", "TIFF") and mode != "I":
        if any(";16" in one for one in raw):
            return _sixteen(image, data, raw[0].split(";")[0], kinds)
        if image.format == "TIFF" and 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ()):
            raise _planes()
    if image.mode.startswith("I;16"):
        bits = image.tag_v2[_BITS_PER_SAMPLE][0] if image.format == "TIFF" else 16
        values = np.asarray(image).astype(np.uint16)[..., None]
        return Decoded(None, tuple(kinds), "L", values, bits if bits < 16 else None, _key(image))
    if mode in ("I", "F"):
        raise ValueError(
            "signed or 32-bit grey values have no fixed range; save 8 or 16 unsigned bits"
        )
    image.load()
    return Decoded(image, tuple(kinds))


def decode_jpeg(data: bytes) -> UInt8[np.ndarray, "height width 3"] | None:
    """A JPEG's pixels in RGB, without Pillow; None for other files and damaged ones.

    Both libraries use libjpeg-turbo, but here no Python code surrounds it: small images take a
    fraction of the time, and other threads can run meanwhile. Different builds may round
    differently, so compare the pixels with those of :func:`decode` before you rely on them.
    """
    try:
        found: UInt8[np.ndarray, "height width 3"] = simplejpeg.decode_jpeg(data, strict=True)
    except ValueError:
        return None
    return found


def rotated(data: bytes) -> bool:
    """Whether a tag of EXIF or XMP asks viewers to rotate or mirror the image, which :func:`decode`
    does not.

    False if the tag cannot be read, and for TIFF, whose tags Pillow applies.
    """
    # A PNG keeps XMP in a text.
    if not data.startswith(_PNG) or b"tiff:Orientation" not in data:
        data = _without_text(data)
        # Pillow would decode every PNG without the chunk to its end in search of it.
        if data.startswith(_PNG) and b"eXIf" not in data:
            return False
    # A JPEG has either tag in a segment of its own, without which it need not be opened again.
    if data.startswith(_JPEG) and b"Exif\0" not in data and b"tiff:Orientation" not in data:
        return False
    try:
        image = _open(data)
        found = image.getexif().get(ExifTags.Base.Orientation)
        return image.format != "TIFF" and found in _ROTATED
    except Exception:  # a damaged tag does not make the image unreadable
        return False


def _open(data: bytes) -> Any:
    Image.init()
    known = [name for name in _FORMATS if name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(data), formats=known)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge from error
    limit = Image.MAX_IMAGE_PIXELS
    # Pillow only warns up to twice its limit.
    if limit is not None and image.width * image.height > limit:
        raise TooLarge
    return image


def _without_text(data: bytes) -> bytes:
    """The bytes of a PNG without texts and colour profile, because Pillow rejects long ones."""
    if not data.startswith(_PNG):
        return data
    kept, place = [_PNG], len(_PNG)
    while place < len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        if kind not in _TEXT:
            kept.append(data[place:end])
        if kind == b"IEND":  # what follows is no part of the image, however long it is
            break
        place = end
    return b"".join(kept)


def _has_more_frames(image: Any, data: bytes) -> bool:
    if image.format not in ("GIF", "TIFF"):
        return bool(getattr(image, "is_animated", False))
    # To find out moves to the second frame, which may be damaged without harm to the first.
    try:
        return bool(_open(data).is_animated)
    except Exception:
        return False


def _portable(image: Any, data: bytes, kinds: Sequence[str]) -> Decoded | None:
    """A portable map of 16 bits; None for any other. Pillow scales to the largest value that the
    file names, which says nothing where it is that of 16 bits."""
    ((_, _, start, args),) = image.tile
    top = 65535 if args == "I;16B" else args[1] if isinstance(args, tuple) else 255
    if image.mode == "I":
        values = np.asarray(image).astype(np.uint16)[..., None]
        return Decoded(None, tuple(kinds), "L", values, 16 if top < 65535 else None)
    if image.mode == "RGB" and top == 65535 and data.startswith(b"P6"):
        shape = (image.height, image.width, 3)
        values = np.frombuffer(data, ">u2", math.prod(shape), start).astype(np.uint16)
        return Decoded(None, tuple(kinds), "RGB", values.reshape(shape))
    return None


def _sixteen(image: Any, data: bytes, mode: str, kinds: Sequence[str]) -> Decoded:
    """Colours of 16 bits. Pillow keeps the upper byte of each; told that the bytes stand the other
    way around, it keeps the lower one."""
    if image.format == "TIFF" and image.tag_v2.get(_PLANES, 1) != 1:
        raise _planes()
    if mode == "LA":
        # As four channels of 8 bits: both bytes of the grey value, both of the opacity.
        upper, lower = np.split(_decoded(data, "RGBA")[..., [0, 2, 1, 3]], 2, axis=2)
        kinds = [*kinds, "grey"]
    else:
        own = _raw(image.tile[0].args)[-1]
        # libtiff hands over the machine's own order.
        little = own == "L" or (own == "N" and sys.byteorder == "little")
        # Not "RGBa", for which Pillow would divide the bytes by the opacity.
        kind = mode.replace("a", "A")
        upper, lower = (_decoded(data, f"{kind};16{o}") for o in ("LB" if little else "BL"))
    values = upper.astype(np.uint16) << 8 | lower
    mode = "RGB" if mode == "RGBX" else mode
    return Decoded(None, tuple(kinds), mode, values, None, _key(image))


def _decoded(data: bytes, raw: str) -> UInt8[np.ndarray, "h w c"]:
    image = _open(data)
    image.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
        for tile in image.tile
    ]
    return np.asarray(image)


def _raw(args: Any) -> str:
    return str(args[0] if isinstance(args, tuple) and args else args)


def _planes() -> ValueError:
    return ValueError("16-bit colours in separate planes; save the image with interleaved ones")


def _key(image: Any) -> tuple[int, ...] | None:
    found = image.info.get("transparency")
    return found if found is None or isinstance(found, tuple) else (found,)


def reason(error: Exception) -> str:
    """Why reading or :func:`decode` failed, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return one_line(error) or type(error).__name__
