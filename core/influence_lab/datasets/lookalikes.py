"""Sets of different but similar pictures, and copies of pictures, both drawn from a seed.

Each set holds different pictures of one kind: forms of one template filled in differently, frames
of one camera, digits. A method that takes two of them for duplicates would cost its user data.
:func:`copied` makes real copies.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

_WORDS = (
    "amount", "answer", "before", "between", "castle", "centre", "change", "corner", "distance",
    "effect", "evening", "figure", "final", "garden", "harbour", "income", "island", "journal",
    "kitchen", "letter", "market", "measure", "morning", "number", "office", "order", "paper",
    "people", "picture", "place", "quarter", "question", "reason", "report", "river", "sample",
    "season", "second", "service", "signal", "station", "summer", "supply", "system", "table",
    "teacher", "total", "traffic", "valley", "value", "village", "water",
)  # fmt: skip
_PAPER, _INK = (250, 250, 246), (30, 30, 40)
_WIDTH, _HEIGHT = 480, 640


def forms(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """A printed form with twelve fields, filled in by hand."""
    template = _page()
    draw = ImageDraw.Draw(template)
    draw.text((30, 20), "Application for a place", _INK, _font(26))
    rows = range(80, 620, 45)
    for number, y in enumerate(rows):
        draw.text((30, y), f"{number + 1}  {_WORDS[3 * number].title()}", _INK, _font(14))
        draw.rectangle((190, y - 6, 450, y + 26), outline=_INK)
    found = []
    for _ in range(count):
        form = template.copy()
        draw = ImageDraw.Draw(form)
        for y in rows:
            place = 196 + int(rng.integers(0, 20)), y - 2 + int(rng.integers(0, 6))
            draw.text(place, _words(rng, 2), (20, 40, 140), _font(int(rng.integers(15, 20))))
        found.append(form)
    return found


def invoices(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Invoices with one letterhead but different customers, items and amounts."""
    found = []
    for _ in range(count):
        page = _page()
        draw = ImageDraw.Draw(page)
        draw.rectangle((0, 0, _WIDTH, 70), (30, 80, 120))
        draw.text((30, 18), "Northern Supply", (255, 255, 255), _font(30))
        draw.text((30, 90), _words(rng, 2).title(), _INK, _font(16))
        draw.text(
            (30, 112), f"{rng.integers(1, 99)} {_words(rng, 1).title()} Road", _INK, _font(16)
        )
        draw.text((320, 90), f"Invoice {rng.integers(1000, 9999)}", _INK, _font(18))
        total = 0
        items = int(rng.integers(4, 13))
        for line in range(items):
            y, amount = 190 + 28 * line, int(rng.integers(100, 99999))
            total += amount
            draw.line((30, y - 5, 450, y - 5), (190, 190, 190))
            draw.text((34, y), _words(rng, 3), _INK, _font(15))
            draw.text((440, y), f"{amount / 100:.2f}", _INK, _font(15), anchor="ra")
        draw.text((440, 200 + 28 * items), f"{total / 100:.2f}", _INK, _font(19), anchor="ra")
        draw.text((30, 600), "Thank you. Payment within thirty days.", _INK, _font(14))
        found.append(page)
    return found


def products(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Bottles of one make on white, each with its own colour and label."""
    found = []
    for _ in range(count):
        picture = Image.new("RGB", (400, 400), "white")
        draw = ImageDraw.Draw(picture)
        colour = tuple(rng.integers(20, 220, 3).tolist())
        draw.rounded_rectangle((130, 110, 270, 370), 24, colour)
        draw.rectangle((175, 60, 225, 115), colour)
        draw.rectangle((170, 40, 230, 62), tuple(rng.integers(20, 220, 3).tolist()))
        draw.rectangle((140, 190, 260, 310), tuple(rng.integers(150, 256, 3).tolist()))
        for line in range(int(rng.integers(2, 5))):
            draw.text(
                (148, 200 + 24 * line), _words(rng, 1), _INK, _font(int(rng.integers(15, 26)))
            )
        found.append(picture)
    return found


def skies(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """The same evening sky with one bird, in a different place each time."""
    found = []
    for _ in range(count):
        picture = _gradient((90, 140, 220), (235, 225, 200), 384, 256)
        picture = _noisy(picture, rng, 1.5)
        draw = ImageDraw.Draw(picture)
        x, y = int(rng.integers(30, 354)), int(rng.integers(20, 180))
        size, lift = int(rng.integers(8, 16)), int(rng.integers(3, 9))
        wings = [(x - size, y - lift), (x - size // 2, y - lift - 2), (x, y)]
        draw.line([*wings, (x + size // 2, y - lift - 2), (x + size, y - lift)], (40, 40, 50), 3)
        found.append(picture)
    return found


def chests(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Chest-like pictures: a bright body, two dark lungs, ribs and a heart, all varied."""
    found = []
    for _ in range(count):
        picture = Image.new("L", (320, 320), 15)
        draw = ImageDraw.Draw(picture)

        def jitter(*box: int) -> tuple[int, ...]:
            return tuple(int(value + rng.normal() * 5) for value in box)

        draw.rounded_rectangle(jitter(30, 10, 290, 318), 60, int(rng.integers(150, 185)))
        for box in ((60, 50, 148, 270), (172, 50, 260, 270)):
            draw.ellipse(jitter(*box), int(rng.integers(50, 80)))
        for rib in range(8):
            y = 50 + 28 * rib + int(rng.normal() * 3)
            for box in ((50, y, 155, y + 50), (165, y, 270, y + 50)):
                draw.arc(jitter(*box), 190, 350, int(rng.integers(120, 150)), 5)
        draw.ellipse(jitter(140, 150, 230, 260), int(rng.integers(160, 200)))
        draw.rectangle(jitter(150, 20, 170, 310), 190)
        soft = picture.filter(ImageFilter.GaussianBlur(3)).convert("RGB")
        found.append(_noisy(soft, rng, 4, grey=True))
    return found


def frames(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Frames of one camera trap: the same clearing, in changing light, with an animal somewhere."""
    ground = Image.fromarray(rng.integers(20, 140, (24, 36, 3), np.uint8)).resize((360, 240), 3)
    fine = Image.fromarray(rng.integers(60, 140, (120, 180, 3), np.uint8)).resize((360, 240), 3)
    scene = Image.blend(ground, fine, 0.5)
    found = []
    for number in range(count):
        frame = ImageEnhance.Brightness(scene).enhance(float(rng.uniform(0.8, 1.2)))
        draw = ImageDraw.Draw(frame)
        x, y = int(rng.integers(20, 300)), int(rng.integers(90, 180))
        size = int(rng.integers(14, 34))
        colour = tuple(rng.integers(20, 90, 3).tolist())
        draw.ellipse((x, y, x + 2 * size, y + size), colour)
        draw.ellipse((x + 2 * size - 6, y - size // 2, x + 2 * size + 10, y + size // 3), colour)
        for leg in range(4):
            at = x + 6 + leg * size // 2
            draw.line((at, y + size - 3, at, y + 2 * size), colour, 4)
        draw.rectangle((0, 224, 360, 240), "black")
        draw.text((6, 225), f"CAM 4   {number // 60:02}:{number % 60:02}", "white", _font(13))
        found.append(_noisy(frame, rng, 3))
    return found


def pages(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Pages of running text in one font."""
    found = []
    for _ in range(count):
        page = _page()
        draw = ImageDraw.Draw(page)
        for y in range(40, 600, 20):
            line = _words(rng, 9)
            while draw.textlength(line, _font(14)) > 420:
                line = line.rpartition(" ")[0]
            draw.text((30, y), line, _INK, _font(14))
        found.append(page)
    return found


def digits(count: int, rng: np.random.Generator) -> list[Image.Image]:
    """scikit-learn's handwritten digits, 8 x 8 pixels each; no two of them are equal."""
    from sklearn.datasets import load_digits

    values = load_digits().images
    rows = rng.permutation(len(values))[:count]
    return [Image.fromarray((values[row] * 15.9).astype(np.uint8)).convert("RGB") for row in rows]


SETS: dict[str, Callable[[int, np.random.Generator], list[Image.Image]]] = {
    "forms": forms,
    "invoices": invoices,
    "products": products,
    "skies": skies,
    "chests": chests,
    "frames": frames,
    "pages": pages,
    "digits": digits,
}
"""Name → function of (count, generator) that draws that many different pictures."""


def photographs() -> dict[str, Image.Image]:
    """Photographs that come with installed packages, by name: two of scikit-learn (china.jpg and
    flower.jpg, CC BY 2.0) and one of matplotlib (grace_hopper.jpg, public domain)."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    named = {
        Path(name).name: Image.fromarray(image)
        for name, image in zip(found.filenames, found.images, strict=True)
    }
    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as picture:
        named["grace_hopper.jpg"] = picture.convert("RGB")
    return named


def tiles(photo: Image.Image, side: int = 104) -> list[Image.Image]:
    """The adjacent squares of a photograph whose standard deviation is at least 12 grey levels, so
    that they show something."""
    places = itertools.product(
        range(0, photo.height - side + 1, side), range(0, photo.width - side + 1, side)
    )
    cut = (photo.crop((x, y, x + side, y + side)) for y, x in places)
    return [tile for tile in cut if np.asarray(tile.convert("L")).std() >= 12]


def _encoded(kind: str, **settings: object) -> Callable[[Image.Image, np.random.Generator], bytes]:
    return lambda image, rng: _bytes(image, kind, **settings)


def _crop(image: Image.Image, rng: np.random.Generator) -> bytes:
    share = float(rng.uniform(0.85, 0.95))
    width, height = (max(1, round(side * share)) for side in image.size)
    x = int(rng.integers(0, image.width - width + 1))
    y = int(rng.integers(0, image.height - height + 1))
    crop = image.crop((x, y, x + width, y + height))
    return _bytes(crop.resize(image.size, Image.Resampling.BICUBIC), "PNG")


def _resized(image: Image.Image, rng: np.random.Generator) -> bytes:
    share = float(rng.uniform(0.5, 0.75))
    width, height = (max(8, round(side * share)) for side in image.size)
    return _bytes(image.resize((width, height), Image.Resampling.LANCZOS), "PNG")


def _brighter(image: Image.Image, rng: np.random.Generator) -> bytes:
    factor = float(rng.choice([rng.uniform(0.7, 0.85), rng.uniform(1.15, 1.3)]))
    return _bytes(ImageEnhance.Brightness(image).enhance(factor), "PNG")


def _turned(how: Image.Transpose) -> Callable[[Image.Image, np.random.Generator], bytes]:
    return lambda image, rng: _bytes(image.transpose(how), "PNG")


def _exif(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Stored on its side, with the tag that rotates it back."""
    lying, tags = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    tags[0x0112] = 6
    return _bytes(lying, "JPEG", quality=92, exif=tags)


COPIES: dict[str, Callable[[Image.Image, np.random.Generator], bytes]] = {
    "jpeg": _encoded("JPEG", quality=75),
    "strong jpeg": _encoded("JPEG", quality=40),
    "webp": _encoded("WEBP", quality=80),
    "format": _encoded("BMP"),
    "resize": _resized,
    "crop": _crop,
    "brightness": _brighter,
    "mirror": _turned(Image.Transpose.FLIP_LEFT_RIGHT),
    "quarter turn": _turned(Image.Transpose.ROTATE_90),
    "half turn": _turned(Image.Transpose.ROTATE_180),
    "three quarters": _turned(Image.Transpose.ROTATE_270),
    "exif": _exif,
}
"""Kind of copy → function of (image, generator) that gives the bytes of its file.

JPEG of quality 75 and 40, WebP of 80, BMP; half to three quarters of the size; a crop of 85 to 95 %
of each side, enlarged to the full size; 15 to 30 % brighter or darker; a mirror image, three turns;
turned by a quarter with the EXIF tag that turns it back. A copy of the file itself is not one of
them, as it needs no picture.
"""


def file_of(image: Image.Image) -> bytes:
    """The original's file, a PNG."""
    return _bytes(image, "PNG")


def _bytes(image: Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(_WORDS, count))


def _page() -> Image.Image:
    return Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)


def _gradient(
    top: tuple[int, int, int], bottom: tuple[int, int, int], width: int, height: int
) -> Image.Image:
    share = np.linspace(0, 1, height)[:, None, None]
    column = (1 - share) * np.array(top) + share * np.array(bottom)
    return Image.fromarray(np.broadcast_to(column, (height, width, 3)).round().astype(np.uint8))


def _noisy(
    image: Image.Image, rng: np.random.Generator, level: float, grey: bool = False
) -> Image.Image:
    values = np.asarray(image, np.float64)
    noise = rng.normal(size=(*values.shape[:2], 1 if grey else 3)) * level
    return Image.fromarray((values + noise).round().clip(0, 255).astype(np.uint8))
