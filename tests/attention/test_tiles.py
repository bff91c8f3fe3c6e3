"""How the kernels cut their work: tiles, scratch, and which kernel takes a call."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from selfextend_rag.attention.triton import launch
from selfextend_rag.attention.triton.tiles import (
    INTERPRETED,
    PrefillTiles,
    candidates,
    choose,
    decode_tiles,
    most_rows,
    prefill_tiles,
)


def test_rotated_keys_stay_within_two_percent_of_a_long_prefill():
    """32 heads, 8 kv heads of 128 dimensions, 128 k tokens, bfloat16, as the bar of 2 % has it."""
    tokens, row = 1 << 17, 128 * 2
    cut = launch.cut_for(tokens, tokens, 1024, 8, row, 128)
    scratch = cut.units * (cut.grouped_rows + cut.near_rows) * row
    plain = tokens * row * (32 + 8 + 8 + 32)
    assert scratch <= 0.02 * plain
    assert cut.part % 128 == 0
    assert cut.part * 2 >= tokens


def test_chosen_tiles_are_taken_and_given_back():
    tiles = PrefillTiles(32, 32, 16, 4, 1, 1)
    choose("prefill", tiles, (9, 0), 128, 2)
    try:
        assert prefill_tiles((9, 0), 128, 2) == tiles
    finally:
        choose("prefill", None, (9, 0), 128, 2)
    assert prefill_tiles((9, 0), 128, 2) == candidates("prefill", (9, 0), 128, 2)[0]


def test_a_decode_step_and_a_question_have_their_own_tiles():
    """Many rows on 4 warps would spill registers."""
    step = candidates("decode", (9, 0), 128, 2)[1]
    choose("decode", step, (9, 0), 128, 2)
    try:
        assert decode_tiles((9, 0), 128, 2, rows=16) == step
        assert decode_tiles((9, 0), 128, 2, rows=32) == candidates("question", (9, 0), 128, 2)[0]
    finally:
        choose("decode", None, (9, 0), 128, 2)
    assert decode_tiles((9, 0), 128, 2, rows=16) == candidates("decode", (9, 0), 128, 2)[0]


@pytest.mark.parametrize(
    ("tokens", "total", "batch", "splits_keys"),
    [
        (1, 1 << 17, 1, True),
        (64, 1 << 17, 1, True),
        (200, 1 << 17, 1, True),
        (256, 1 << 17, 1, False),  # 64 tiles on 132 multiprocessors
        (64, 1 << 17, 4, False),  # 128 tiles
        (64, 64, 1, False),  # a whole prompt
        (16, 16, 1, True),  # one program's rows, whatever the keys
    ],
)
def test_a_short_question_splits_the_keys(tokens, total, batch, splits_keys, monkeypatch):
    """Where a prefill's tiles of 128 queries would leave most of the device idle."""
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 132)
    q = torch.empty(batch, 32, tokens, 1, dtype=torch.bfloat16)
    k = torch.empty(batch, 8, 1, 1, dtype=torch.bfloat16).expand(batch, 8, total, 1)
    assert launch.keeps_busier(q, k) is splits_keys


def test_a_question_in_float32_is_a_prefill():
    """It has no tensor cores to fill: past one program's rows the keys are rotated beforehand."""
    q, k = torch.empty(1, 8, 20, 1), torch.empty(1, 1, 1, 1).expand(1, 1, 1 << 17, 1)
    assert not launch.keeps_busier(q, k)
    assert launch.keeps_busier(q[:, :, :8], k)


@pytest.mark.parametrize(
    "capability", [INTERPRETED, (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_architecture_and_head_has_tiles(capability, itemsize):
    for dim in (16, 32, 64, 128, 256):
        for tiles in candidates("prefill", capability, dim, itemsize):
            assert tiles.block_n % tiles.edge_n == 0
            assert min(tiles.block_m, tiles.edge_n) >= 16
        steps = candidates("decode", capability, dim, itemsize)
        questions = candidates("question", capability, dim, itemsize)
        assert all(t.block_n >= 16 for t in steps + questions)
        assert most_rows(dim, itemsize) >= 16
