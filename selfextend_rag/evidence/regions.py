"""Where in a picture an answer looked: the attention of its tokens, put where these come from."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from selfextend_rag.documents import Picture

CELLS = 120  # of a heat map's side: the grids of most vision models divide it
_REGION = 0.5  # of the strongest cell's attention that the cells of a region have at least
_WHOLE = 0.7  # of each side from which on a region is called the whole picture
_TINT, _FRAME = (255, 60, 0), (0, 90, 255)
_OPAQUE = 0.65  # of the tint where attention is strongest
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")

Weights = NDArray[np.float64]
Box = tuple[float, float, float, float]
Boxes = NDArray[np.float64]
"""Where each token of a picture comes from, ``[tokens, 4]``: left, top, right and bottom, from 0 to
1 of its sides. NaN for tokens that come from nowhere in it, such as those that end rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Heat:
    """How the attention to a picture is spread over it.

    Args:
        density: ``[CELLS, CELLS]`` attention in cells of equal size, rows from top to bottom; the
            strongest is 1.
    """

    density: NDArray[np.float32]

    @classmethod
    def of(cls, weights: Weights, boxes: Boxes) -> Heat | None:
        """Return the heat of a picture's tokens; None where no token with a place has weight.

        Each token's weight is spread evenly over its box, and where boxes overlap, as those of
        tiles and of the whole do, it adds up.

        Args:
            weights: ``[tokens]`` attention.
            boxes: where the tokens come from.
        """
        placed = ~np.isnan(boxes).any(axis=1)
        weights, boxes = weights[placed], boxes[placed]
        if not weights.sum() > 0.0:
            return None
        area = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1e-9)
        across, along = _covered(boxes[:, [0, 2]]), _covered(boxes[:, [1, 3]])
        density = (along * (weights / area)[:, None]).T @ across
        return cls((density / density.max()).astype(np.float32))

    @property
    def region(self) -> Box:
        """Return the box around the strongest cell and those next to it, and next to these, that
        have half of its attention; left, top, right and bottom, from 0 to 1."""
        strong = self.density >= _REGION
        found = np.zeros_like(strong)
        found[np.unravel_index(int(self.density.argmax()), strong.shape)] = True
        while True:
            grown = found.copy()
            grown[1:] |= found[:-1]
            grown[:-1] |= found[1:]
            grown[:, 1:] |= found[:, :-1]
            grown[:, :-1] |= found[:, 1:]
            grown &= strong
            if (grown == found).all():
                break
            found = grown
        rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
        left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return left / CELLS, top / CELLS, right / CELLS, bottom / CELLS

    def region_of(self, picture: Picture) -> tuple[int, int, int, int]:
        """Return ``region`` in pixels of a picture, as people see it; the last ones are outside."""
        left, top, right, bottom = self.region
        width, height = picture.width, picture.height
        first = int(left * width), int(top * height)
        return *first, max(first[0] + 1, round(right * width)), max(
            first[1] + 1, round(bottom * height)
        )  # fmt: skip

    def drawn_on(self, picture: Picture) -> bytes:
        """Return a PNG of a picture with its heat in red and the region in a blue frame.

        Raises:
            DocumentError: the picture is damaged, or Pillow is not installed.
        """
        image = picture.image()
        ways, draw = import_module("PIL.Image"), import_module("PIL.ImageDraw")
        shade = ways.fromarray((self.density * (_OPAQUE * 255)).astype(np.uint8))
        # Cells, not a blur: what is shown is no finer than what was looked at.
        image.paste(_TINT, (0, 0), shade.resize(image.size, ways.Resampling.NEAREST))
        left, top, right, bottom = self.region_of(picture)
        wide = max(1, min(image.size) // 200)
        frame = (left, top, right - 1, bottom - 1)
        draw.Draw(image).rectangle(frame, outline=_FRAME, width=wide)
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()


def place_in_words(region: Box) -> str:
    """Return where a region is, such as ``top left``, ``middle`` or ``bottom``; empty for all."""
    left, top, right, bottom = region
    if right - left >= _WHOLE and bottom - top >= _WHOLE:
        return ""
    row, column = min(2, int(1.5 * (top + bottom))), min(2, int(1.5 * (left + right)))
    return f"{_ROWS[row]} {_COLUMNS[column]}".strip() or "middle"


def _covered(spans: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each cell of a side that is in each span, ``[tokens, CELLS]``."""
    start = np.arange(CELLS) / CELLS
    first = np.maximum(spans[:, :1], start)
    last = np.minimum(spans[:, 1:], start + 1 / CELLS)
    found: NDArray[np.float64] = np.maximum(last - first, 0.0) * CELLS
    return found
