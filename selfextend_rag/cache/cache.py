"""The cache that a model is given: its layers, their capacity, and the bytes they hold."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from selfextend_rag.cache.layers import FullLayer, GrowingLayer, SlidingLayer
from selfextend_rag.cache.quantised import QuantisedLayer, check_kv_bits, why_not_rounded
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.positions import SelfExtend


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


def expect(cache: Cache, settings: SelfExtend) -> None:
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
