"""Pictures to try a vision model on: signs that have a coloured shape and a number, and others.

Each is 50 x 50 pixels, five by five patches of ten. A sign has a band of a colour, then a shape,
and a number of two digits below, each within a patch; all else of it is one tint. What
is no sign is a texture. Pixels are drawn here, without a font.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from selfextend_rag.documents import Document, Picture

Pixels = NDArray[np.uint8]

PATCH, GRID = 10, 5
SIDE, PATCHES = PATCH * GRID, GRID * GRID
BAND, SHAPE, FIRST, SECOND = 8, 9, 12, 13  # patches, row by row, of what a sign has

COLOURS = {
    "red": (230, 30, 30),
    "yellow": (240, 225, 30),
    "green": (30, 200, 40),
    "blue": (40, 50, 235),
    "pink": (240, 50, 225),
    "white": (250, 250, 250),
}
SHAPES = ("square", "ball", "star", "cross", "ring", "heart")
KEYS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
"""What a sign is asked for by: a colour and a shape, 36 in all."""
TINTS = ((215, 215, 215), (200, 215, 230), (230, 215, 195), (205, 225, 200), (220, 205, 220))

_FONT = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00010 00100 01000 11111",
    "11111 00010 00100 00010 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
_DIGITS = np.array([[[c == "1" for c in row] for row in x.split()] for x in _FONT])  # [10, 7, 5]
_ICONS = {
    "square": "........ ........ ######## ######## ######## ######## ######## ######## ########",
    "ball": "........ ..####.. .######. ######## ######## ######## ######## .######. ..####..",
    "star": "...##... ...##... ######## .######. ..####.. .######. .##..##. ##....## ........",
    "cross": "...##... ...##... ...##... ######## ######## ...##... ...##... ...##... ........",
    "ring": "..####.. .##..##. ##....## ##....## ##....## ##....## .##..##. ..####.. ........",
    "heart": ".##..##. ######## ######## ######## .######. ..####.. ...##... ........ ........",
}


@dataclass(frozen=True, slots=True)
class Sign:
    """What a picture shows, or nothing if it is a texture.

    Args:
        key: its number in ``KEYS``; None for a texture.
        number: from 10 to 99.
        tint: of the background, in ``TINTS``.
    """

    key: int | None
    number: int = 10
    tint: int = 0

    @classmethod
    def drawn(cls, rng: np.random.Generator, key: int | None) -> Sign:
        """Return a sign of this key with any number, on any tint."""
        return cls(key, int(rng.integers(10, 100)), int(rng.integers(len(TINTS))))

    @property
    def question(self) -> str:
        """Return the question for its number."""
        assert self.key is not None
        return f"What is the number of the {' '.join(KEYS[self.key])}?"

    def pixels(self, rng: np.random.Generator) -> Pixels:
        """Return the picture ``[50, 50, 3]``: noise, and places to a pixel, vary."""
        if self.key is None:
            return _texture(rng)
        colour, shape = KEYS[self.key]
        ink = np.array(COLOURS[colour]) + rng.integers(-8, 9, 3)
        image = np.full((SIDE, SIDE, 3), TINTS[self.tint], dtype=np.float64)
        top, left = _corner(BAND)
        image[top : top + PATCH, left : left + PATCH] = ink
        icon = np.array([[c == "#" for c in row] for row in _ICONS[shape].split()])
        top, left = _corner(SHAPE)
        down, right = rng.integers(0, 2, 2)
        image[top + down : top + down + 9, left + right : left + right + 8][icon] = 10
        down, right = rng.integers(1, 3, 2)
        for patch, digit in zip((FIRST, SECOND), divmod(self.number, 10), strict=True):
            top, left = _corner(patch)
            place = image[top + down : top + down + 7, left + right : left + right + 5]
            place[_DIGITS[digit]] = 10
        image += rng.normal(0, 4, image.shape)
        return np.clip(image, 0, 255).astype(np.uint8)


def _corner(patch: int) -> tuple[int, int]:
    row, column = divmod(patch, GRID)
    return row * PATCH, column * PATCH


def _texture(rng: np.random.Generator) -> Pixels:
    """Return waves of colours in the dark, which no sign has."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(-0.6, 0.6, (3, 3)) * (1, 1, 9)]
    image = 30 + 20 * np.stack(waves, axis=-1) + rng.normal(0, 8, (SIDE, SIDE, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def haystack(
    rng: np.random.Generator, count: int, depths: Sequence[float], signs: float = 0.25
) -> tuple[list[Sign], list[int]]:
    """Return what so many pictures show, and which of them are asked for.

    Args:
        rng: draws all.
        count: pictures.
        depths: of each that is asked for, from 0 to 1; these have keys of their own.
        signs: share of the others that are signs too, of any other key; the rest are textures.
    """
    keys = rng.permutation(len(KEYS))
    own, others = keys[: len(depths)], keys[len(depths) :]
    found = [
        Sign.drawn(rng, int(rng.choice(others)) if rng.random() < signs else None)
        for _ in range(count)
    ]
    places = [min(count - 1, int(depth * count)) for depth in depths]
    for place, key in zip(places, own, strict=True):
        found[place] = Sign.drawn(rng, int(key))
    return found, places


def document(rng: np.random.Generator, signs: Sequence[Sign]) -> Document:
    """Return a document of nothing but these pictures, in their order."""
    images, pictures = import_module("PIL.Image"), []
    for number, sign in enumerate(signs, 1):
        out = io.BytesIO()
        images.fromarray(sign.pixels(rng)).save(out, "PNG")
        pictures.append(Picture(out.getvalue(), SIDE, SIDE, 0, f"picture {number}"))
    return Document.from_text("", title="signs", pictures=pictures)
