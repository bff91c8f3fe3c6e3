"""A growing key-value cache: amortised appends, and the grouped, rotated keys kept beside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from selfextend_rag.attention import GroupedKeys

_FIRST_CAPACITY = 256
_GROWTH = 1.5


class GrowingLayer(DynamicLayer):
    """Keys ``[B, Hkv, S, D]`` and values ``[B, Hkv, S, Dv]`` of one layer, in buffers with room.

    ``keys`` and ``values`` are views of the filled part. Keys are stored as they come: un-rotated
    when the model is extended. The keys that `update` returns carry this layer as the attribute
    ``cache_layer``, where attention finds ``grouped_keys``.

    Args:
        capacity: tokens to make room for at the first update; more is allocated when needed.
    """

    def __init__(self, capacity: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.capacity = max(capacity, 0)
        self.grouped_keys = GroupedKeys()
        self._key_buffer: Tensor | None = None
        self._value_buffer: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values and return all of them, as views."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            self._key_buffer = self._value_buffer = self.keys = self.values = None
        length = 0 if self.keys is None else self.keys.shape[-2]
        end = length + key_states.shape[-2]
        self._make_room(key_states, value_states, length, end)
        self._key_buffer[:, :, length:end] = key_states
        self._value_buffer[:, :, length:end] = value_states
        self.keys = self._key_buffer[:, :, :end]
        self.values = self._value_buffer[:, :, :end]
        keys = self._key_buffer[:, :, :end]  # a view of its own: self.keys must not point back here
        keys.cache_layer = self  # type: ignore[attr-defined]
        return keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens; see `transformers.DynamicLayer.crop`."""
        super().crop(tokens_to_remove)
        if self.keys is not None:
            self.grouped_keys.forget(self.keys.shape[-2])

    def reset(self) -> None:
        """Drop everything, the buffers too."""
        self.grouped_keys.clear()
        self._key_buffer = self._value_buffer = None
        super().reset()

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, and grouped keys, free room included."""
        held = [x.nbytes for x in (self._key_buffer, self._value_buffer) if x is not None]
        return sum(held) + self.grouped_keys.nbytes

    def _make_room(self, keys: Tensor, values: Tensor, length: int, end: int) -> None:
        buffer = self._key_buffer
        if buffer is None or (length and buffer.data_ptr() != self.keys.data_ptr()):
            # empty, or the rows were rearranged, moved or replaced since the last update
            self.grouped_keys.clear()
        elif end <= buffer.shape[2] and buffer.shape[0] == keys.shape[0]:
            return
        held = length if buffer is None else max(length, int(buffer.shape[2] * _GROWTH))
        capacity = max(end, self.capacity, held, _FIRST_CAPACITY)
        self._key_buffer = self._grown(self.keys, keys, length, capacity)
        self._value_buffer = self._grown(self.values, values, length, capacity)
        self.capacity = capacity

    @staticmethod
    def _grown(old: Tensor | None, like: Tensor, length: int, capacity: int) -> Tensor:
        new = like.new_empty((*like.shape[:2], capacity, like.shape[3]))
        if old is not None and length:
            new[:, :, :length] = old
        return new


class SelfExtendCache(DynamicCache):
    """A `transformers.DynamicCache` whose full-attention layers are `GrowingLayer`s.

    Sliding-window and other layers are those of transformers. Works for plain and for extended
    models; what it holds belongs to the settings it was filled under.

    Args:
        config: the model's config; without it every layer is a growing one.
        capacity: tokens to make room for at once, so that nothing is copied while it fills.
    """

    def __init__(self, config: Any = None, capacity: int = 0) -> None:
        super().__init__(config=config)
        self.capacity = capacity
        self.layers = [
            GrowingLayer(capacity) if type(layer) is DynamicLayer else layer
            for layer in self.layers
        ]
        if self.layer_class_to_replicate is not None:
            self.layer_class_to_replicate = GrowingLayer

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers, free room included."""
        return sum(_layer_nbytes(layer) for layer in self.layers)


def _layer_nbytes(layer: Any) -> int:
    if isinstance(layer, GrowingLayer):
        return layer.nbytes
    tensors = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return sum(x.nbytes for x in tensors if isinstance(x, torch.Tensor))
