"""Sliding layers hand out what the mask was told of, also while they record the past."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicSlidingWindowLayer

from selfextend_rag.cache.layers import SlidingLayer


def all_that_is_kept(layer, key_states, value_states, *args, **kwargs):
    """What transformers before 5.18 hands out while the past is recorded."""
    if not layer.is_initialized:
        layer.lazy_initialization(key_states, value_states)
    layer.cumulative_length += key_states.shape[-2]
    layer.keys = torch.cat([layer.keys, key_states], dim=-2)
    layer.values = torch.cat([layer.values, value_states], dim=-2)
    return layer.keys, layer.values


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "before 5.18"])
def test_keys_are_those_that_the_mask_expects_and_can_be_wound_back(installed, monkeypatch):
    if not installed:
        monkeypatch.setattr(DynamicSlidingWindowLayer, "update", all_that_is_kept)
    layer, window = SlidingLayer(4), 4
    layer.activate_past_recording()
    keys, seen = torch.arange(20.0).view(1, 1, 20, 1), 0
    for new in (3, 1, 2, 1, 1, 5):
        length, offset = layer.get_mask_sizes(new)
        given, values = layer.update(keys[:, :, seen : seen + new], keys[:, :, seen : seen + new])
        seen += new
        assert torch.equal(given, keys[:, :, offset : offset + length])
        assert torch.equal(values, given)
    layer.crop(-6)
    assert layer.get_seq_length() == seen - 6
    assert torch.equal(layer.keys, keys[:, :, seen - 6 - (window - 1) : seen - 6])
