"""A growing key-value cache: amortised appends, and the grouped, rotated keys kept beside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from selfextend_rag.attention import GroupedKeys
from selfextend_rag.cache.sliding import SlidingLayer
from selfextend_rag.errors import CacheMismatchError
from selfextend_rag.positions import SelfExtend

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
        self._filled_under: SelfExtend | None = None
        self._noted = 0  # tokens that came under those settings
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
        if self._filled_under is not None and length > self._noted:
            raise CacheMismatchError(
                f"{self._noted} tokens were cached under {self._filled_under}, and "
                f"{length - self._noted} more under plain attention; read them again with a new "
                "cache"
            )
        end = length + key_states.shape[-2]
        keys, values = self._buffers = self._room(key_states, value_states, length, end)
        keys[:, :, length:end] = key_states
        values[:, :, length:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        given = keys[:, :, :end]  # a view of its own: self.keys must not point back at the layer
        given.cache_layer = self  # type: ignore[attr-defined]
        return given, self.values

    def belong_to(self, settings: SelfExtend, new_tokens: int) -> None:
        """Take note of the settings under which keys come; the last ``new_tokens`` just came.

        Raises:
            CacheMismatchError: the keys before were cached plain, or under other settings.
        """
        before = self.get_seq_length() - new_tokens
        if before > 0 and self._filled_under != settings:
            how = "plain attention" if self._filled_under is None else f"{self._filled_under}"
            raise CacheMismatchError(
                f"{before} tokens were cached under {how}, and can't be continued under {settings};"
                " read them again with a new cache"
            )
        self._filled_under, self._noted = settings, self.get_seq_length()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens; see `transformers.DynamicLayer.crop`."""
        super().crop(tokens_to_remove)
        if self.keys is not None:
            self.grouped_keys.forget(self.keys.shape[-2])
            self._noted = min(self._noted, self.keys.shape[-2])

    def reset(self) -> None:
        """Drop everything, the buffers too."""
        self.grouped_keys.clear()
        self._buffers = self._filled_under = self.keys = self.values = None
        self._noted = 0
        self.is_initialized = False

    @property
    def filled_under(self) -> SelfExtend | None:
        """The settings under which the cached keys came; None for plain attention."""
        return self._filled_under

    def emptied(self, length: int, filled_under: SelfExtend | None, capacity: int) -> GrowingLayer:
        """Return a layer of the same shapes, whose ``length`` keys and values are to be written.

        Args:
            length: tokens; ``keys`` and ``values`` of the new layer are views of so many.
            filled_under: the settings under which they came.
            capacity: tokens to make room for.
        """
        new = GrowingLayer(max(capacity, length))
        if self.keys is None or self.values is None:
            return new
        new.dtype, new.device, new.is_initialized = self.dtype, self.device, True
        keys, values = new._buffers = (
            self._grown(None, self.keys, 0, new.capacity),
            self._grown(None, self.values, 0, new.capacity),
        )
        new.keys, new.values = keys[:, :, :length], values[:, :, :length]
        # Where keys are expanded behind the cache (latent attention), nobody notes the settings.
        noted = self._filled_under is not None
        new._filled_under, new._noted = (filled_under if noted else None), length
        return new

    def start_of(self, length: int, capacity: int) -> GrowingLayer:
        """Return a copy of the first ``length`` tokens, with room for ``capacity``."""
        new = self.emptied(length, self._filled_under, capacity)
        for mine, copied in ((self.keys, new.keys), (self.values, new.values)):
            if mine is not None and copied is not None:
                copied.copy_(mine[:, :, :length])
        return new

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
        room = max(end, self.capacity, int(room * _GROWTH), _FIRST_CAPACITY)
        self.capacity = room
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
    """A `transformers.DynamicCache` whose full-attention layers are `GrowingLayer`s.

    Sliding-window layers are `SlidingLayer`s, others those of transformers. Works for plain and for
    extended models; what it holds belongs to the settings it was filled under.

    Args:
        config: the model's config; without it every layer is a growing one.
        capacity: tokens to make room for at once, so that nothing is copied while it fills.
    """

    def __init__(self, config: Any = None, capacity: int = 0) -> None:
        super().__init__(config=config)
        self.capacity = capacity
        self.layers = [_our_own(layer, capacity) for layer in self.layers]
        if self.layer_class_to_replicate is not None:
            self.layer_class_to_replicate = GrowingLayer

    def set_capacity(self, capacity: int) -> None:
        """Set the tokens to make room for when a layer next needs other buffers."""
        self.capacity = capacity
        for layer in self.layers:
            if isinstance(layer, GrowingLayer):
                layer.capacity = capacity

    def drop_grouped_keys(self) -> None:
        """Free what can be made again."""
        for layer in self.layers:
            if isinstance(layer, GrowingLayer):
                layer.grouped_keys.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers, free room included."""
        return sum(_layer_nbytes(layer) for layer in self.layers)


def _our_own(layer: Any, capacity: int) -> Any:
    if type(layer) is DynamicLayer:
        return GrowingLayer(capacity)
    if type(layer) is DynamicSlidingWindowLayer:
        return SlidingLayer(layer.sliding_window)
    return layer


def _layer_nbytes(layer: Any) -> int:
    if isinstance(layer, GrowingLayer):
        return layer.nbytes
    states = (getattr(layer, name, None) or {} for name in ("conv_states", "recurrent_states"))
    tensors = [getattr(layer, "keys", None), getattr(layer, "values", None)]
    tensors += [x for by_index in states for x in by_index.values()]
    return sum(x.untyped_storage().nbytes() for x in tensors if isinstance(x, torch.Tensor))
