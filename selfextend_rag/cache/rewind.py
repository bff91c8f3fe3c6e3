"""Caches cut back to fewer tokens, and copies of their beginnings."""

from __future__ import annotations

import copy

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from selfextend_rag.cache.cache import SelfExtendCache
from selfextend_rag.cache.layers import FullLayer


def rewind(cache: Cache, length: int, *, record: bool = True) -> None:
    """Cut a cache back to its first ``length`` tokens.

    Layer by layer, because a forward that was broken off leaves the later layers shorter. Without
    ``record``, sliding layers drop from then on what lies behind their window.
    """
    for layer in cache.layers:
        _cut(layer, length)
        if not record and isinstance(layer, DynamicSlidingWindowLayer):
            layer.record_past = False


def _cut(layer: object, length: int) -> None:
    if isinstance(layer, CacheLayerMixin) and layer.is_initialized:
        surplus = max(0, layer.get_seq_length() - length)
        crop = getattr(layer, "crop", None)  # the base class has none
        if crop is not None and (surplus or getattr(layer, "record_past", False)):
            crop(-surplus)


def can_rewind(cache: Cache) -> bool:
    """Return whether `rewind` leaves no trace; recurrent and convolution states can't go back."""
    return all(map(_croppable, cache.layers)) and not has_state(cache)


def _croppable(layer: object) -> bool:
    croppable: bool = getattr(layer, "is_croppable", isinstance(layer, DynamicLayer))
    return croppable  # layers say so from transformers 5.17 on


def has_state(cache: Cache) -> bool:
    """Return whether any layer has a state that belongs to the last token alone."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def start_recording(cache: Cache) -> None:
    """Let sliding layers keep what is behind their window, so that they can be cut back."""
    cache.activate_past_recording()


def shortest(cache: Cache) -> int:
    """Return the smallest number of tokens that the cache can be cut back to, and work.

    Sliding layers have dropped what lies behind their window, and can go back only as far as they
    have kept more than that.
    """
    if not can_rewind(cache):
        return cache.get_seq_length()
    return max(map(_shortest_of, cache.layers), default=0)


def _shortest_of(layer: object) -> int:
    if not isinstance(layer, DynamicSlidingWindowLayer) or layer.keys is None:
        return 0
    kept, seen = layer.keys.shape[-2], layer.cumulative_length
    if kept == seen and (layer.record_past or seen < layer.sliding_window):
        return 0
    return seen - (kept - (layer.sliding_window - 1)) if layer.record_past else seen


@torch.inference_mode()
def copied(cache: SelfExtendCache, length: int, capacity: int) -> SelfExtendCache:
    """Return a copy of the first ``length`` tokens, with space for ``capacity``.

    ``length`` is at least ``shortest(cache)``. Grouped keys are left to be made again.
    """
    new = copy.copy(cache)
    new.capacity = capacity
    new.layers = []
    for layer in cache.layers:
        if isinstance(layer, FullLayer):
            new.layers.append(layer.part(0, length, capacity))
        else:
            new.layers.append(copy.deepcopy(layer))
            _cut(new.layers[-1], length)
    return new
