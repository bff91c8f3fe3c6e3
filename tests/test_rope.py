"""Rotation at given positions."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from selfextend_rag.rope import RotaryLayout

RATES = tuple(1e4 ** (-2 * i / 16) for i in range(8))


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_half_pairing_is_the_rotation_of_llama(scale):
    rotary = LlamaRotaryEmbedding(
        LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=512)
    )
    q, k = torch.randn(2, 2, 4, 40, 16).unbind()
    positions = torch.arange(40)[None]
    cos, sin = rotary(q, positions)
    expected, _ = apply_rotary_pos_emb(q, k, cos * scale, sin * scale)
    layout = RotaryLayout(tuple(rotary.inv_freq.tolist()), scale=scale)
    torch.testing.assert_close(layout.rotate(q, positions[0]), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize(("offset", "sign"), [(0, 1), (4, 1), (8, -1)])
def test_scores_depend_on_the_difference_of_positions_alone(pairing, offset, sign):
    layout = RotaryLayout(RATES, pairing, offset, sign)
    q, k = torch.randn(2, 1, 1, 1, 24, dtype=torch.float64).unbind()
    scores = [
        (layout.rotate(q, torch.tensor([p + 37])) * layout.rotate(k, torch.tensor([p]))).sum()
        for p in (0, 5, 1000)
    ]
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(scores[2], scores[0], rtol=0, atol=1e-10)
    reversed_sign = RotaryLayout(RATES, pairing, offset, -sign)
    other = reversed_sign.rotate(q, torch.tensor([37])) * reversed_sign.rotate(k, torch.tensor([0]))
    assert (other.sum() - scores[0]).abs() > 1e-3


def test_dimensions_outside_the_rotary_part_pass_unchanged():
    layout = RotaryLayout(RATES, offset=4, scale=2.0)
    x = torch.randn(2, 3, 5, 24)
    rotated = layout.rotate(x, torch.arange(5))
    assert torch.equal(rotated[..., :4], x[..., :4])
    assert torch.equal(rotated[..., 20:], x[..., 20:])
    assert not torch.equal(rotated[..., 4:20], x[..., 4:20])


def test_rows_may_be_at_different_positions():
    layout = RotaryLayout(RATES)
    x = torch.randn(2, 3, 5, 16)
    positions = torch.stack([torch.arange(5), torch.arange(7, 12)])
    both = layout.rotate(x, positions)
    for row in range(2):
        assert torch.equal(both[row], layout.rotate(x[row : row + 1], positions[row])[0])


def test_long_inputs_are_rotated_as_short_ones(monkeypatch):
    layout = RotaryLayout(RATES)
    x = torch.randn(2, 3, 50, 16)
    whole = layout.rotate(x, torch.arange(50))
    monkeypatch.setattr("selfextend_rag.rope._AT_ONCE", 7 * 2 * 3 * 16)
    assert torch.equal(layout.rotate(x, torch.arange(50)), whole)


def test_far_positions_keep_the_precision_of_float32():
    """Angles in float32 are off by 1e-3 at positions near 32,768; tables here are not."""
    layout = RotaryLayout(RATES)
    x = torch.randn(1, 1, 4, 16)
    positions = torch.arange(32764, 32768)
    exact = layout.rotate(x.double(), positions)
    assert (layout.rotate(x, positions) - exact).abs().max() < 1e-6


def test_a_head_too_small_for_the_rotary_part_is_refused():
    with pytest.raises(ValueError, match="do not fit a head of 16"):
        RotaryLayout(RATES, offset=8).rotate(torch.randn(1, 1, 2, 16), torch.arange(2))
