"""Text recognition: what the picture of a page says, its lines in the order of reading.

``pdf_pages.py`` runs this in its process. The models are in the wheel of rapidocr: nothing is
fetched. They take a line of text to read to the right, or downward where it is tall.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIXELS = 2e6  # of a page's picture, whatever its size: A4 has 145 dots for each inch
_LONGEST = 16000  # of its sides; OpenCV has a limit of 32767
_UNSURE, _UNREAD = 0.8, 0.65  # confidences: may be upside down; as of text that is
_THREADS = 4  # each takes memory


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text: its centre (y counts down), the direction it reads in, and its size."""

    text: str
    confidence: float
    x: float
    y: float
    angle: float
    length: float
    height: float

    @property
    def left(self) -> float:
        return self.x - self.length / 2

    @property
    def right(self) -> float:
        return self.x + self.length / 2


def scale(width: float, height: float) -> float:
    """Return by how much a page of this size is enlarged for its picture."""
    longest = max(width, height, 1e-3)
    return min(math.sqrt(PIXELS / max(width * height, 1e-3)), _LONGEST / longest)


def recognise(picture: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the text on a picture, how sure it is, and how many lines can't be read.

    Args:
        picture: ``[height, width, 3]``, blue first.

    Raises:
        ImportError: the extra ``ocr`` is not installed.
    """
    lines = _lines(picture) if np.ptp(picture) else []
    if any(line.confidence < _UNSURE for line in lines):
        lines = _surest(lines, _lines(picture, upside_down=True))
    read = [line for line in lines if line.confidence >= _UNREAD]
    letters = sum(len(line.text) for line in read)
    sure = sum(line.confidence * len(line.text) for line in read)
    return {
        "text": "\n".join(in_order(read)),
        "confidence": round(sure / max(letters, 1), 3),
        "lowest": round(min((line.confidence for line in read), default=0.0), 3),
        "unread": len(lines) - len(read),
    }


@cache
def _recogniser() -> Callable[[NDArray[np.uint8]], Any]:
    import_module("onnxruntime")  # which rapidocr looks for later, with another message
    settings = {
        "Global.log_level": "critical",
        "Global.text_score": 0.0,  # it would drop what is below
        "Global.use_cls": False,  # turns lines that are upright, and misses a tenth of the others
        "Global.max_side_len": 2 * _LONGEST,
        "Det.max_candidates": 10000,  # lines; it would drop the others
        "Rec.rec_batch_num": 1,  # more take memory, and no less time
        "EngineConfig.onnxruntime.intra_op_num_threads": min(_THREADS, os.cpu_count() or 1),
    }
    recogniser: Callable[[NDArray[np.uint8]], Any] = import_module("rapidocr").RapidOCR(
        params=settings
    )
    return recogniser


def _lines(picture: NDArray[np.uint8], upside_down: bool = False) -> list[Line]:
    if upside_down:
        picture = np.ascontiguousarray(picture[::-1, ::-1])
    found = _recogniser()(picture)
    if found.txts is None:
        return []
    lines = []
    for box, text, confidence in zip(found.boxes, found.txts, found.scores, strict=True):
        corners = np.asarray(box, dtype=float)
        if upside_down:
            corners = np.array([picture.shape[1], picture.shape[0]]) - corners
        along, down = corners[1] - corners[0], corners[3] - corners[0]
        if np.hypot(*down) >= 1.5 * np.hypot(*along):
            along, down = down, -along
            text = "I" if text == "一" else text  # a stroke that was taken to lie down
        x, y = corners.mean(axis=0)
        size = float(np.hypot(*along)), float(np.hypot(*down))
        angle = math.atan2(along[1], along[0])
        lines.append(Line(text.strip(), float(confidence), float(x), float(y), angle, *size))
    return [line for line in lines if line.text]


def _surest(lines: list[Line], others: list[Line]) -> list[Line]:
    """Return of two readings the better one, with the other's lines where that is surer of them."""

    def sure(reading: list[Line]) -> float:
        return sum(len(line.text) * (line.confidence - _UNSURE) for line in reading)

    if sure(others) > sure(lines):
        lines, others = others, lines
    chosen = []
    for line in lines:
        near = (x for x in others if math.hypot(x.x - line.x, x.y - line.y) < line.height)
        best = max(near, key=lambda other: other.confidence, default=line)
        unsure = line.confidence < _UNSURE and best.confidence > line.confidence
        chosen.append(best if unsure else line)
    return chosen


def in_order(lines: list[Line]) -> list[str]:
    """Return the text of lines as people read them, those next to each other joined by spaces.

    The page is rotated so that most of it reads to the right. Columns of prose are read one after
    the other, and what goes across them in its place; all else, tables too, row by row.
    """
    letters = Counter[int]()
    for line in lines:
        letters[round(line.angle / (math.pi / 2)) % 4] += len(line.text)
    page = max(letters, key=letters.__getitem__, default=0) * math.pi / 2
    slopes = [math.remainder(x.angle - page, math.tau) for x in lines if x.length > 5 * x.height]
    page += median([slope for slope in slopes if abs(slope) < 0.5] or [0.0])
    cos, sin = math.cos(page), math.sin(page)
    upright = []
    for line in lines:
        lies = abs(math.cos(line.angle - page)) > 0.7
        length, height = (line.length, line.height) if lies else (line.height, line.length)
        x, y = cos * line.x + sin * line.y, cos * line.y - sin * line.x
        upright.append(Line(line.text, line.confidence, x, y, 0.0, length, height))
    return _columns(upright)


def _columns(lines: list[Line]) -> list[str]:
    gutters = []
    for gutter in {line.left for line in lines}:
        left = [line for line in lines if line.right <= gutter]
        right = [line for line in lines if line.left >= gutter]
        across = len(lines) - len(left) - len(right)
        if _prose(left, 0.75) and _prose(right) and 4 * across <= len(lines):
            gutters.append((across, gutter))
    if not gutters:
        zones = _zones(lines)
        return [text for zone in zones for text in (_columns(zone) if zones[1:] else _rows(zone))]
    gutter = min(gutters)[1]
    parts: list[tuple[bool, list[Line]]] = []
    for zone in _zones(lines):
        apart = _in_columns(zone, gutter)
        if parts and apart and parts[-1][0]:
            parts[-1][1].extend(zone)
        else:
            parts.append((apart, zone))
    if len(parts) > 1:
        return [text for _, part in parts for text in _columns(part)]
    over = sorted((x for x in lines if x.left < gutter < x.right), key=lambda line: line.y)
    text = []
    for above, line in enumerate([*over, None]):  # each, and what is between it and the one before
        between = [x for x in lines if sum(o.y < x.y for o in over) == above and x not in over]
        text += _columns([x for x in between if x.right <= gutter])
        text += _columns([x for x in between if x.right > gutter])
        text += [line.text] if line else []
    return text


def _in_columns(lines: list[Line], gutter: float) -> bool:
    """Return whether lines on either side of a gutter are long, as those of tables are not."""
    sides = [[x for x in lines if x.right <= gutter], [x for x in lines if x.left >= gutter]]
    return any(sides) and all(_prose(side, 0.0, least=1) for side in sides if side)


def _zones(lines: list[Line]) -> list[list[Line]]:
    """Return the parts of a page between gaps that are as high as a line."""
    zones: list[list[Line]] = []
    lowest, gap = -math.inf, median([line.height for line in lines] or [0.0])
    for line in sorted(lines, key=lambda line: line.y):
        if line.y - line.height / 2 - lowest > gap:
            zones.append([])
        zones[-1].append(line)
        lowest = max(lowest, line.y + line.height / 2)
    return zones


def _prose(lines: list[Line], filled: float = 0.0, least: int = 4) -> bool:
    """Return whether lines are long, so many, and usually fill so much of their width."""
    if len(lines) < least:
        return False
    usual = median(line.length for line in lines)
    width = max(line.right for line in lines) - min(line.left for line in lines)
    return usual >= max(10 * median(line.height for line in lines), filled * width)


def _rows(lines: list[Line]) -> list[str]:
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line.y):
        if rows and line.y - rows[-1][0].y < 0.5 * min(rows[-1][0].height, line.height):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [" ".join(x.text for x in sorted(row, key=lambda line: line.left)) for row in rows]
