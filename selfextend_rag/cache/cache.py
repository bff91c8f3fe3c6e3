"""The cache that a model is given: its layers, their capacity and bytes; cut back, and copied."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from selfextend_rag.cache.layers import FullLayer, GrowingLayer, SlidingLayer
from selfextend_rag.cache.quantised import QuantisedLayer, check_kv_bits, why_not_rounded
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.positions import PositionMap


class SelfExtendCache(DynamicCache):
    """A `transformers.DynamicCache` whose full-attention layers know their settings.

    Sliding-window layers are `SlidingLayer`s, others those of transformers. Works for plain and for
    extended models; what it holds belongs to the settings it was filled under.

    Args:
        config: the model's config; without it every layer keeps all tokens.
        capacity: tokens to allocate at once, so that nothing is copied while it fills.
        kv_bits: 8 or 4 to keep keys and values in so many bits, in the layers that keep all tokens;
            None for the model's own precision.

    Raises:
        UnsupportedModelError: ``kv_bits`` is given, and no layer keeps all tokens.
        ValueError: ``kv_bits`` is out of range.
    """

    def __init__(
        self,
        config: PreTrainedConfig | None = None,
        capacity: int = 0,
        kv_bits: int | None = None,
    ) -> None:
        super().__init__(config=config)
        if kv_bits is not None:
            check_kv_bits(kv_bits)
        self.capacity = capacity
        self.kv_bits = kv_bits
        kinds = [type(layer).__name__ for layer in self.layers]
        new: Any = GrowingLayer if kv_bits is None else partial(QuantisedLayer, kv_bits)
        self.layers = [
            SlidingLayer(layer.sliding_window)
            if type(layer) is DynamicSlidingWindowLayer
            else new(capacity)
            if type(layer) is DynamicLayer
            else layer
            for layer in self.layers
        ]
        if self.layer_class_to_replicate is not None:
            self.layer_class_to_replicate = new
        elif kv_bits is not None and not any(isinstance(x, FullLayer) for x in self.layers):
            raise UnsupportedModelError(why_not_rounded(kv_bits, kinds))

    def set_capacity(self, capacity: int) -> None:
        """Set the tokens to allocate when a layer next needs other buffers."""
        self.capacity = capacity
        for layer in self.layers:
            if isinstance(layer, FullLayer):
                layer.capacity = capacity

    def drop_grouped_keys(self) -> None:
        """Free what can be made again."""
        for layer in self.layers:
            if isinstance(layer, FullLayer) and layer.grouped_keys is not None:
                layer.grouped_keys.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers, free space included."""
        return sum(layer_nbytes(layer) for layer in self.layers)


def expect(cache: Cache, settings: PositionMap) -> None:
    """Note on a cache that the next tokens come from a model that is extended with these settings.

    A plain `DynamicCache` is given layers that refuse to mix them with tokens of other settings.
    Others are left as they are: caches of other classes, offloaded ones, dynamic layers that hold
    keys, and those while gradients are recorded, which need what a growing layer would write over.
    """
    plain = type(cache) is DynamicCache and not cache.offloading and not torch.is_grad_enabled()
    if plain and not torch.compiler.is_compiling():
        cache.layers = [
            GrowingLayer() if type(layer) is DynamicLayer and not layer.is_initialized else layer
            for layer in cache.layers
        ]
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = GrowingLayer
    for layer in getattr(cache, "layers", ()):
        if isinstance(layer, FullLayer):
            layer.expect(settings)
    new = getattr(cache, "layer_class_to_replicate", None)
    if new is GrowingLayer or isinstance(new, partial):  # ours, of layers that are yet to be made
        vars(cache)["layer_class_to_replicate"] = partial(new, expected=settings)


def bytes_by_device(cache: Cache) -> dict[str, int]:
    """Return the bytes that the layers of a cache hold, free space included, by their device."""
    held: dict[str, int] = {}
    for layer in cache.layers:
        size = layer_nbytes(layer)
        if size:
            name = str(getattr(layer, "device", "cpu"))
            held[name] = held.get(name, 0) + size
    return held


def layer_nbytes(layer: object) -> int:
    """Return the bytes that a layer of a cache holds."""
    if isinstance(layer, FullLayer):
        return layer.nbytes
    states = (getattr(layer, name, None) or {} for name in ("conv_states", "recurrent_states"))
    tensors = [getattr(layer, "keys", None), getattr(layer, "values", None)]
    tensors += [x for by_index in states for x in by_index.values()]
    return sum(x.untyped_storage().nbytes() for x in tensors if isinstance(x, torch.Tensor))


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
