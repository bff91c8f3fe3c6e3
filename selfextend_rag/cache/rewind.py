"""Caches cut back to fewer tokens, and copies of their beginnings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

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


def rewind(cache: Cache, length: int) -> None:
    """Cut a cache back to its first ``length`` tokens.

    Layer by layer, because a forward that was broken off leaves the later layers shorter.
    """
    layers: list[Any] = list(cache.layers)
    for layer in layers:
        filled = isinstance(layer, CacheLayerMixin) and layer.is_initialized
        if filled:
            surplus = max(0, layer.get_seq_length() - length)
            if surplus or getattr(layer, "record_past", False):
                layer.crop(-surplus)


def can_rewind(cache: Cache) -> bool:
    """Return whether `rewind` leaves no trace; recurrent and convolution states can't go back."""
    return all(map(_croppable, cache.layers)) and not has_state(cache)


def _croppable(layer: Any) -> bool:
    croppable: bool = getattr(layer, "is_croppable", isinstance(layer, DynamicLayer))
    return croppable  # layers say so from transformers 5.17 on


def has_state(cache: Cache) -> bool:
    """Return whether any layer has a state that belongs to the last token alone."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def start_recording(cache: Cache) -> None:
    """Let sliding layers keep what is behind their window, so that they can be cut back."""
    record: Callable[[], None] = cache.activate_past_recording
    record()


def stop_recording(cache: Cache) -> None:
    """Let sliding layers drop again what lies behind their window."""
    layers: list[Any] = list(cache.layers)
    for layer in layers:
        if getattr(layer, "record_past", False):
            layer.record_past = False


def shortest(cache: Cache) -> int:
    """Return the smallest number of tokens that the cache can be cut back to, and work.

    Sliding layers have dropped what lies behind their window, and can go back only as far as they
    have kept more than that.
    """
    if not can_rewind(cache):
        return cache.get_seq_length()
    return max((_shortest_of(layer) for layer in cache.layers), default=0)


def _shortest_of(layer: Any) -> int:
    if not isinstance(layer, DynamicSlidingWindowLayer) or not layer.is_initialized:
        return 0
    assert layer.keys is not None
    kept, seen = layer.keys.shape[-2], layer.cumulative_length
    if kept == seen and seen < layer.sliding_window:
        return 0
    if not layer.record_past:
        return seen
    return 0 if kept == seen else seen - (kept - (layer.sliding_window - 1))


@torch.inference_mode()
def copied(cache: SelfExtendCache, length: int, capacity: int) -> SelfExtendCache:
    """Return a copy of the first ``length`` tokens, with room for ``capacity``.

    ``length`` is at least ``shortest(cache)``. Grouped keys are left to be made again.
    """
    new = copy.copy(cache)
    new.capacity = capacity
    new.layers = [_copied_layer(layer, length, capacity) for layer in cache.layers]
    return new


def _copied_layer(layer: Any, length: int, capacity: int) -> Any:
    if isinstance(layer, FullLayer):
        return layer.start_of(length, capacity)
    other: Any = copy.deepcopy(layer)
    if isinstance(layer, CacheLayerMixin) and layer.is_initialized:
        surplus = other.get_seq_length() - length
        if surplus or getattr(other, "record_past", False):
            other.crop(-surplus)
    return other
