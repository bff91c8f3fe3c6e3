"""Where in a picture an answer looked: the region of its heat, in words, and drawn on it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from selfextend_rag.documents import Document, Picture
from selfextend_rag.evidence import Heat, TokenRanges, find_evidence

SIDES = 90, 60  # pixels: three columns and two rows of 30


def grid(rows: int, columns: int) -> np.ndarray:
    """The boxes of tokens in rows, from the top left."""
    places = [(c, r, c + 1, r + 1) for r in range(rows) for c in range(columns)]
    return np.array(places) / (columns, rows, columns, rows)


def picture() -> Picture:
    out = io.BytesIO()
    Image.new("RGB", SIDES, (200, 200, 200)).save(out, "PNG")
    return Picture(out.getvalue(), *SIDES, 0, "page 1")


def looked(*weights: float, boxes: np.ndarray | None = None):
    """The evidence of a picture of six tokens, after two of the frame, with these weights."""
    document = Document.from_text("", title="scan", pictures=[picture()])
    count = len(weights)
    columns = [-1, -1] + [0] * count, [0] * (count + 2), [0] * (count + 2), [-1, -1] + [0] * count
    ranges = TokenRanges(*(np.array(x, dtype=np.int64) for x in columns))
    mass = np.array([0.0, 0.0, *weights])
    known = grid(2, 3) if boxes is None else boxes
    (found,) = find_evidence(mass, ranges, [document], boxes=lambda shown: known)
    return found, [document]


@pytest.mark.parametrize(
    ("token", "region", "words"),
    [
        (0, (0, 0, 30, 30), "top left"),
        (1, (30, 0, 60, 30), "top"),
        (5, (60, 30, 90, 60), "bottom right"),
    ],
)
def test_the_region_is_where_the_heaviest_token_is(token, region, words):
    weights = [0.02] * 6
    weights[token] = 0.9
    found, _ = looked(*weights)
    assert found.region == region
    assert found.location == f"page 1, {words}"
    assert found.to_dict()["region"] == region
    assert "heat" not in found.to_dict()


def test_a_region_goes_on_over_neighbours_that_have_half_as_much_and_no_farther():
    found, _ = looked(0.4, 0.25, 0.1, 0.05, 0.05, 0.3)  # the last one is no neighbour
    assert found.region == (0, 0, 60, 30)
    everywhere, _ = looked(*[1 / 6] * 6)
    assert everywhere.region == (0, 0, *SIDES)
    assert everywhere.location == "page 1"


def test_tiles_that_overlap_add_up():
    whole, quarter = [[0.0, 0.0, 1.0, 1.0]], [[0.5, 0.5, 1.0, 1.0]]
    heat = Heat.of(np.array([0.6, 0.4]), np.array([*whole, *quarter]))
    assert heat is not None
    assert heat.density[0, 0] == pytest.approx(0.6 / 2.2)  # a quarter has four times the density
    assert heat.density[-1, -1] == 1


def test_tokens_of_no_place_count_for_the_picture_and_not_for_its_region():
    boxes = grid(2, 3)
    boxes[0] = np.nan
    found, _ = looked(0.8, 0.1, 0.0, 0.0, 0.0, 0.05, boxes=boxes)
    assert found.score == pytest.approx(1)
    assert found.region is not None
    assert found.region[:2] == (30, 0)
    boxes[:] = np.nan
    unknown, documents = looked(0.8, 0.1, 0.0, 0.0, 0.0, 0.05, boxes=boxes)
    assert (unknown.region, unknown.location) == (None, "page 1")
    with pytest.raises(ValueError, match="where in page 1 the answer looked is not known"):
        unknown.overlay(documents)


def test_the_overlay_is_the_picture_red_where_it_was_looked_at():
    found, documents = looked(0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    with Image.open(io.BytesIO(found.overlay(documents))) as drawn:
        assert (drawn.format, drawn.size) == ("PNG", SIDES)
        assert drawn.getpixel((10, 10)) == (200, 200, 200)
        red, green, blue = drawn.getpixel((45, 45))
        assert red > green > blue
        assert drawn.getpixel((30, 30)) == (0, 90, 255)  # the frame's corner


def test_there_is_nothing_to_draw_on_in_text_or_elsewhere():
    found, _ = looked(0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="which is not there"):
        found.overlay([Document.from_text("Other.")])
