"""Where in a picture each of its tokens comes from, measured and not known by family.

A picture whose colours are the coordinates of its pixels is processed like any other. What comes
out says where each point of each tile was, whatever was resized, cropped, padded or cut on the way;
a tile's tokens are taken to be a grid over it. Whether the model keeps to that is measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from selfextend_rag.evidence import Boxes

_CLEARER = 1.5  # times as much as elsewhere, tokens of a changed part of a picture change at least
_BESIDE = 0.02  # of it, up to which a token is none of the part
_STILL = 1e-6  # of a token's length, by which one moves that does not change
_SHARE = 0.75  # of a token's box that is in a part of the picture which counts as its own

Pixels = NDArray[np.float64]
Made = Callable[[Any], dict[str, Any]]
"""A processor: what it makes of a picture of Pillow's."""


def token_boxes(made: Made, width: int, height: int) -> Boxes | None:
    """Return where the tokens of a picture of so many pixels come from, as fractions of its sides.

    Returns:
        None where the processor makes no tiles of three colours, or a tile's tokens are no grid.
    """
    across, along = _ramp(width), _ramp(height)
    ramps = np.empty((height, width, 3), dtype=np.uint8)
    ramps[..., 0], ramps[..., 1], ramps[..., 2] = across[None], along[:, None], 128
    arguments = made(_picture(ramps))
    black, white = (_tiles(made(_picture(np.full_like(ramps, x)))) for x in (0, 255))
    tiles = _tiles(arguments)
    if tiles is None or black is None or white is None:
        return None
    if not tiles.shape == black.shape == white.shape:
        return None
    tokens = np.asarray(arguments["input_ids"][0].tolist())
    values, counts = np.unique(tokens, return_counts=True)
    image = np.flatnonzero(tokens == values[counts.argmax()])
    grid = _grid(len(image), tiles)
    if grid is None or (counts == counts.max()).sum() > 1:  # which of them are pixels is not known
        return None
    range_ = white - black
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(np.abs(range_) > 1e-6, (tiles - black) / range_, np.nan)  # not of padding
    boxes = np.full((len(tokens), 4), np.nan)
    boxes[image] = np.concatenate([_of_tile(tile, grid) for tile in found])
    return boxes


def keeps_places(
    made: Made, boxes: Boxes, embedded: Callable[[Any], Tensor], picture: Any
) -> bool | None:
    """Return whether a model's tokens of a picture come from where its processor's tiles have them.

    Each quarter of the picture is made its negative; the tokens that come from there have to change
    by clearly more than the others. Models that gather a picture in tokens of no place fail that.

    Args:
        made: the processor.
        boxes: `token_boxes` of the picture's size.
        embedded: the model's embeddings ``[1, T, hidden]`` of what the processor made.
        picture: of Pillow, in RGB.

    Returns:
        None if nothing of the picture changes any token, which says nothing of the model.
    """
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    before, seen = _numbers(embedded(made(picture))), False
    size = np.maximum(np.linalg.norm(before, axis=-1), 1e-12)
    for across, along in ((0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5)):
        left, top = round(across * width), round(along * height)
        right, bottom = round((across + 0.5) * width), round((along + 0.5) * height)
        changed = pixels.copy()
        changed[top:bottom, left:right] = 255 - changed[top:bottom, left:right]
        after = _numbers(embedded(made(_picture(changed))))
        moved = np.linalg.norm(after - before, axis=-1) / size
        inside = _share_within(boxes, (across, along, across + 0.5, along + 0.5))
        own, others = moved[inside >= _SHARE], moved[inside <= _BESIDE]
        if not len(own) or not len(others):
            return False
        if max(own.max(), others.max()) < _STILL:
            continue
        if own.mean() <= _CLEARER * others.mean():
            return False
        seen = True
    return True if seen else None


def _ramp(length: int) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = np.round((np.arange(length) + 0.5) / length * 255).astype(np.uint8)
    return found


def _picture(pixels: NDArray[np.uint8]) -> Any:
    return import_module("PIL.Image").fromarray(pixels)


def _numbers(tensor: Tensor) -> Pixels:
    found: Pixels = tensor[0].double().cpu().numpy()
    return found


def _tiles(arguments: dict[str, Any]) -> Pixels | None:
    """Return the pixels ``[tiles, 3, height, width]`` that a model is given."""
    pixels = arguments.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.ndim < 4 or pixels.shape[-3] != 3:
        return None
    found: Pixels = pixels.double().cpu().numpy().reshape(-1, *pixels.shape[-3:])
    return found


def _grid(tokens: int, tiles: Pixels) -> tuple[int, int] | None:
    """Return the rows and columns of a tile's tokens, in the proportion of its sides."""
    count, _, height, width = tiles.shape
    if tokens % count:
        return None
    each = tokens // count
    rows = round((each * height / width) ** 0.5)
    if rows < 1 or each % rows or rows * width != each // rows * height:
        return None
    return rows, each // rows


def _of_tile(tile: Pixels, grid: tuple[int, int]) -> Boxes:
    """Return the boxes ``[tokens, 4]`` of a tile whose first two colours are coordinates."""
    across, along = tile[0], tile[1]
    boxes = []
    for rows in np.array_split(np.arange(tile.shape[1]), grid[0]):
        for columns in np.array_split(np.arange(tile.shape[2]), grid[1]):
            cell = np.ix_(rows, columns)
            left, right = _span(across[cell])
            top, bottom = _span(along[cell].T)
            boxes.append((left, top, right, bottom))
    return np.array(boxes)


def _span(values: Pixels) -> tuple[float, float]:
    """Return where coordinates that rise along the second axis begin and end; NaN for padding."""
    known = ~np.isnan(values)
    if known.mean() < 1 - _SHARE:
        return np.nan, np.nan
    columns = np.array([x[~np.isnan(x)].mean() for x in values.T if not np.isnan(x).all()])
    step = (columns[-1] - columns[0]) / (len(columns) - 1) if len(columns) > 1 else 0.0
    first, last = columns[0] - step / 2, columns[-1] + step / 2
    return float(np.clip(first, 0, 1)), float(np.clip(last, 0, 1))


def _share_within(boxes: Boxes, part: Sequence[float]) -> NDArray[np.float64]:
    """Return which share of each box is in a part of the picture; NaN where it has no place."""
    left, top, right, bottom = boxes.T
    wide = np.minimum(right, part[2]) - np.maximum(left, part[0])
    high = np.minimum(bottom, part[3]) - np.maximum(top, part[1])
    area = np.maximum((right - left) * (bottom - top), 1e-12)
    found: NDArray[np.float64] = np.maximum(wide, 0) * np.maximum(high, 0) / area
    return np.where(np.isnan(left), np.nan, found)
