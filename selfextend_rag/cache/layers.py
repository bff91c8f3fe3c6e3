"""A growing key-value cache: amortised appends, and the grouped, rotated keys kept beside."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticCache,
)

from selfextend_rag.attention import GroupedKeys
from selfextend_rag.cache.full import FullLayer
from selfextend_rag.cache.quantised import QuantisedLayer
from selfextend_rag.cache.sliding import SlidingLayer
from selfextend_rag.cache.static import notice_in_place
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.kv_bits import check_kv_bits, why_not_rounded
from selfextend_rag.positions import SelfExtend


class GrowingLayer(FullLayer):
    """Keys ``[B, Hkv, S, D]`` and values ``[B, Hkv, S, Dv]`` of one layer, in buffers with room.

    ``keys`` and ``values`` are views of the filled part.

    Args:
        capacity: tokens to make room for at the first update; more is allocated when needed.
    """

    def __init__(self, capacity: int = 0, **kwargs: Any) -> None:
        super().__init__(capacity, **kwargs)
        self.grouped_keys: GroupedKeys = GroupedKeys()
        self._buffers: tuple[Tensor, Tensor] | None = None  # [B, Hkv, capacity, D], and D = Dv

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values and return all of them, as views.

        Raises:
            CacheMismatchError: keys were cached plain after keys that were cached extended.
        """
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            self._buffers = self.keys = self.values = None
        length = 0 if self.keys is None else self.keys.shape[-2]
        self._check_noted(length)
        end = length + key_states.shape[-2]
        keys, values = self._buffers = self._room(key_states, value_states, length, end)
        keys[:, :, length:end] = key_states
        values[:, :, length:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        given = keys[:, :, :end]  # a view of its own: self.keys must not point back at the layer
        given.cache_layer = self  # type: ignore[attr-defined]  # how attention finds us
        return given, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens; see `transformers.DynamicLayer.crop`."""
        super().crop(tokens_to_remove)
        if self.keys is not None:
            self.grouped_keys.forget(self.keys.shape[-2])
            self._noted = min(self._noted, self.keys.shape[-2])

    def reset(self) -> None:
        """Drop everything, the buffers too."""
        self.grouped_keys.clear()
        self._buffers = None
        super().reset()

    def tensors(self) -> dict[str, Tensor]:
        """Return views of keys and values, by name."""
        named = {"keys": self.keys, "values": self.values}
        return {name: x for name, x in named.items() if x is not None and x.numel()}

    def emptied(self, length: int, filled_under: SelfExtend | None, capacity: int) -> GrowingLayer:
        """Return a layer of the same shapes, whose ``length`` tokens are to be written."""
        new = GrowingLayer(max(capacity, length))
        if self.keys is None or self.values is None:
            return new
        new.dtype, new.device, new.is_initialized = self.dtype, self.device, True
        keys, values = new._buffers = (
            self._grown(None, self.keys, 0, new.capacity),
            self._grown(None, self.values, 0, new.capacity),
        )
        new.keys, new.values = keys[:, :, :length], values[:, :, :length]
        return self._note(new, length, filled_under)

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, and grouped keys, free room included."""
        return sum(x.nbytes for x in self._buffers or ()) + self.grouped_keys.nbytes

    def _room(
        self, new_keys: Tensor, new_values: Tensor, length: int, end: int
    ) -> tuple[Tensor, Tensor]:
        """Buffers that hold the first ``length`` tokens and have room for ``end``."""
        buffers, room = self._buffers, 0
        held = self.keys
        if buffers and held is not None and held.data_ptr() != buffers[0].data_ptr():
            buffers = None  # rows were rearranged, moved or replaced since the last update
        if buffers is None:
            self.grouped_keys.clear()
        else:
            room = buffers[0].shape[2]
            if end <= room and len(buffers[0]) == len(new_keys):
                return buffers
        room = self.capacity = self._enough(end, room)
        return (
            self._grown(self.keys, new_keys, length, room),
            self._grown(self.values, new_values, length, room),
        )

    @staticmethod
    def _grown(old: Tensor | None, like: Tensor, length: int, capacity: int) -> Tensor:
        new = like.new_empty((*like.shape[:2], capacity, like.shape[3]))
        if old is not None and length:
            new[:, :, :length] = old
        return new


class SelfExtendCache(DynamicCache):
    """A `transformers.DynamicCache` whose full-attention layers make room and know their settings.

    Sliding-window layers are `SlidingLayer`s, others those of transformers. Works for plain and for
    extended models; what it holds belongs to the settings it was filled under.

    Args:
        config: the model's config; without it every layer keeps all tokens.
        capacity: tokens to make room for at once, so that nothing is copied while it fills.
        kv_bits: 8 or 4 to keep keys and values in so many bits, in the layers that keep all tokens;
            None for the model's own precision.

    Raises:
        UnsupportedModelError: ``kv_bits`` is given, and no layer keeps all tokens.
        ValueError: ``kv_bits`` is out of range.
    """

    def __init__(self, config: Any = None, capacity: int = 0, kv_bits: int | None = None) -> None:
        super().__init__(config=config)
        check_kv_bits(kv_bits)
        self.capacity = capacity
        self.kv_bits = kv_bits
        kinds = [type(layer).__name__ for layer in self.layers]
        self.layers = [self._our_own(layer) for layer in self.layers]
        if self.layer_class_to_replicate is not None:
            kind: Any = GrowingLayer if kv_bits is None else partial(QuantisedLayer, kv_bits)
            self.layer_class_to_replicate = kind
        elif kv_bits is not None and not any(isinstance(x, FullLayer) for x in self.layers):
            raise UnsupportedModelError(why_not_rounded(kv_bits, kinds))

    def _our_own(self, layer: Any) -> Any:
        if type(layer) is DynamicSlidingWindowLayer:
            return SlidingLayer(layer.sliding_window)
        if type(layer) is not DynamicLayer:
            return layer
        if self.kv_bits is None:
            return GrowingLayer(self.capacity)
        return QuantisedLayer(self.kv_bits, self.capacity)

    def set_capacity(self, capacity: int) -> None:
        """Set the tokens to make room for when a layer next needs other buffers."""
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
        """Bytes held by all layers, free room included."""
        return sum(layer_nbytes(layer) for layer in self.layers)


def let_notice(cache: Any) -> None:
    """Give a plain `DynamicCache` or `StaticCache` layers that notice keys of other settings.

    Others are left as they are: caches of other classes, offloaded ones, dynamic layers that hold
    keys, and those while gradients are recorded, which need what a growing layer would write over.
    """
    if type(cache) is StaticCache and not cache.offloading:
        for layer in cache.layers:
            notice_in_place(layer)
    if type(cache) is not DynamicCache or cache.offloading or torch.is_grad_enabled():
        return
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer and not layer.is_initialized else layer
        for layer in cache.layers
    ]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer


def bytes_by_device(cache: Any) -> dict[str, int]:
    """Return the bytes that the layers of a cache hold, free room included, by their device."""
    held: dict[str, int] = {}
    for layer in cache.layers:
        size = layer_nbytes(layer)
        if size:
            name = str(getattr(layer, "device", "cpu"))
            held[name] = held.get(name, 0) + size
    return held


def layer_nbytes(layer: Any) -> int:
    """Return the bytes that a layer of a cache holds."""
    if isinstance(layer, FullLayer):
        return layer.nbytes
    states = (getattr(layer, name, None) or {} for name in ("conv_states", "recurrent_states"))
    tensors = [getattr(layer, "keys", None), getattr(layer, "values", None)]
    tensors += [x for by_index in states for x in by_index.values()]
    return sum(x.untyped_storage().nbytes() for x in tensors if isinstance(x, torch.Tensor))
