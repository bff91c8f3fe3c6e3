"""Sliding layers hand out what the mask was told of, also while they record the past."""

from __future__ import annotations

import copy
import random

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


@torch.inference_mode()
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("window", [2, 5, 40])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_transformers_layer_whatever_comes(recorded, window, seed):
    """Single tokens and chunks by chance, cut back now and then, and what was handed out stays."""
    draw = random.Random(f"{recorded} {window} {seed}")
    ours, theirs = SlidingLayer(window), DynamicSlidingWindowLayer(window)
    if recorded:
        ours.activate_past_recording()
        theirs.activate_past_recording()
    handed_out = []
    for _ in range(60):
        if recorded and draw.random() < 0.15 and ours.is_initialized:
            most = min(ours.keys.shape[2], ours.get_seq_length(), 3)
            if ours.get_seq_length() >= window:
                most = min(most, ours.keys.shape[2] - window + 1)
            if most > 0:
                back = draw.randint(1, most)
                ours.crop(-back)
                theirs.crop(-back)
        keys = torch.randn(2, 3, draw.choice((1, 1, 1, 1, 2, 7)), 4)
        values = torch.randn(2, 3, keys.shape[2], 5)
        length, _ = ours.get_mask_sizes(keys.shape[2])
        found, wanted = ours.update(keys, values), theirs.update(keys, values)
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other[:, :, -length:])
            handed_out.append((one, one.clone()))
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        if draw.random() < 0.1:
            ours = copy.deepcopy(ours)
    assert all(torch.equal(x, before) for x, before in handed_out)


@torch.inference_mode()
def test_a_row_that_takes_other_keys_leaves_the_layer_it_is_a_copy_of():
    layer = SlidingLayer(5)
    for _ in range(9):
        layer.update(torch.randn(1, 1, 1, 2), torch.randn(1, 1, 1, 2))
    row, before = copy.copy(layer), layer.keys.clone()
    row.keys, row.values = row.keys.clone(), row.values.clone()
    row.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert torch.equal(layer.keys, torch.cat([before[:, :, 1:], torch.zeros(1, 1, 1, 2)], 2))
    assert torch.equal(row.keys, torch.cat([before[:, :, 1:], torch.ones(1, 1, 1, 2)], 2))
