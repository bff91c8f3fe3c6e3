"""Where the tokens of a picture come from: as each processor cuts it, if the model keeps to it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from selfextend_rag.model import picture_embeddings
from selfextend_rag.text.picture_places import keeps_places, token_boxes
from selfextend_rag.text.pictures import PictureProcessor
from tests.zoo import vision

CLOSE = 1 / 100  # coordinates are told by 256 levels of a colour, and resized


def boxes_of(name: str, width: int, height: int) -> np.ndarray | None:
    return PictureProcessor(vision.processor(name))._boxes(width, height)


def test_a_square_that_is_cut_out_of_the_middle_says_where_it_was():
    boxes = boxes_of("llava", 128, 64)
    expected = [
        (0.25 + c / 8, r / 4, 0.25 + (c + 1) / 8, (r + 1) / 4) for r in range(4) for c in range(4)
    ]
    np.testing.assert_allclose(boxes, expected, atol=CLOSE)


def test_tiles_come_in_rows_and_the_whole_picture_last():
    """Of Idefics 3, with tokens around each tile that have no place."""
    boxes = boxes_of("idefics3", 96, 96)
    placed = boxes[~np.isnan(boxes).any(axis=1)]
    assert len(placed) < len(boxes)
    quarters = [(x, y) for y in (0, 0.5) for x in (0, 0.5)]
    small = [
        (x + c / 4, y + r / 4, x + (c + 1) / 4, y + (r + 1) / 4)
        for x, y in quarters
        for r in (0, 1)
        for c in (0, 1)
    ]
    large = [(x, y, x + 0.5, y + 0.5) for x, y in quarters]
    np.testing.assert_allclose(placed, [*small, *large], atol=CLOSE)


def test_rows_of_another_length_than_columns_are_found():
    """Of LightOnOCR, whose tokens are as many as fit the picture's own sides."""
    boxes = boxes_of("lighton_ocr", 120, 60)
    right = [x for x in boxes[:, 2] if x > 0.98]
    assert len(right) == 2
    assert len(boxes) == 8


@pytest.mark.parametrize("name", ["idefics2", "llava_next", "qwen2_vl"])
def test_what_is_no_grid_has_no_places(name):
    assert boxes_of(name, 90, 60) is None


@pytest.mark.parametrize("name", ["llava", "smolvlm"])
def test_models_that_keep_places_are_told_from_those_that_mix_them(name):
    model, processor = vision.model(name), PictureProcessor(vision.processor(name))
    embedded, shown = partial(picture_embeddings, model), vision.picture(90, 60)
    boxes = processor._boxes(*shown.size)

    def keeps(embeddings: object) -> bool | None:
        return keeps_places(processor._alone, boxes, embeddings, shown)

    assert keeps(embedded) is True

    def mixed(arguments: dict[str, object]) -> torch.Tensor:
        found = embedded(arguments)
        return found + 20 * found.mean(dim=1, keepdim=True)

    def reversed_(arguments: dict[str, object]) -> torch.Tensor:
        return embedded(arguments).flip(1)

    assert keeps(mixed) is False
    assert keeps(reversed_) is False
    assert keeps(lambda arguments: torch.ones(1, len(boxes), 4)) is None


def test_a_processor_of_no_tiles_has_no_places():
    assert token_boxes(lambda image: {"input_ids": torch.tensor([[1, 1]])}, 4, 4) is None
