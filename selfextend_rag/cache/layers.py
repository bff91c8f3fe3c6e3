"""Layers of a key-value cache: those that keep every token, and those that keep a window."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from selfextend_rag.attention import GroupedKeys
from selfextend_rag.errors import CacheMismatchError
from selfextend_rag.positions import SelfExtend

FIRST_CAPACITY = 256
GROWTH = 1.5

_Layer = TypeVar("_Layer", bound="FullLayer")


class FullLayer(DynamicLayer):
    """Keys and values of one layer, all that came; un-rotated when the model is extended.

    The keys that `update` returns carry the layer as the attribute ``cache_layer``, where attention
    finds ``grouped_keys``.

    Attributes:
        grouped_keys: rotated keys that are kept beside the others; None where none are kept.

    Args:
        capacity: tokens to make room for at the first update; more is allocated when needed.
    """

    grouped_keys: GroupedKeys | None = None

    def __init__(self, capacity: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.capacity = max(capacity, 0)
        self._filled_under: SelfExtend | None = None
        self._noted = 0  # tokens that came under those settings
        self._expected = False  # the next ones come from an extended model

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return views of all that is held and can't be made again, by name."""

    @abstractmethod
    def emptied(self, length: int, filled_under: SelfExtend | None, capacity: int) -> FullLayer:
        """Return a layer of the same shapes, whose ``length`` tokens are to be written.

        Args:
            length: tokens; the ``tensors`` of the new layer are views of so many.
            filled_under: the settings under which they came.
            capacity: tokens to make room for.
        """

    @abstractmethod
    def append(self, other: FullLayer) -> None:
        """Append what a layer of the same kind holds, as it is."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held, free room included."""

    @property
    def filled_under(self) -> SelfExtend | None:
        """The settings under which the cached keys came; None for plain attention."""
        return self._filled_under

    def expect(self) -> None:
        """Take note that an extended model is about to add tokens; a plain one never says so."""
        self._expected = True

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

    def start_of(self, length: int, capacity: int) -> FullLayer:
        """Return a copy of the first ``length`` tokens, with room for ``capacity``."""
        new = self.emptied(length, self._filled_under, capacity)
        mine = self.tensors()
        for name, place in new.tensors().items():
            place.copy_(mine[name][:, :, : place.shape[2]])
        return new

    def reset(self) -> None:
        """Drop everything, the buffers too."""
        self._filled_under, self._noted = None, 0
        self.keys = self.values = None
        self.is_initialized = False

    def _enough(self, end: int, room: int) -> int:
        """Return the tokens to make room for: as was told, or half as many more than there are."""
        told = self.capacity if end <= self.capacity else int(room * GROWTH)
        return max(end, told, FIRST_CAPACITY)

    def _check_noted(self, length: int) -> None:
        """Refuse keys that come plain after keys that came extended."""
        if self._filled_under is not None and (length > self._noted or not self._expected):
            raise CacheMismatchError(
                f"{self._noted} tokens were cached under {self._filled_under}, and can't be "
                "continued under plain attention; read them again with a new cache"
            )
        self._expected = False

    def _note(self, new: _Layer, length: int, filled_under: SelfExtend | None) -> _Layer:
        """Give a new layer the notes of this one, for ``length`` tokens."""
        # Where keys are expanded behind the cache (latent attention), nobody notes the settings.
        noted = self._filled_under is not None
        new._filled_under, new._noted = (filled_under if noted else None), length
        return new


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

    def append(self, other: FullLayer) -> None:
        """Append what a layer of the same kind holds, as it is."""
        if other.keys is not None and other.values is not None:
            self.expect()
            self.update(other.keys, other.values)

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


class SlidingLayer(DynamicSlidingWindowLayer):
    """transformers' sliding layer; ``update`` hands out no key that is outside the window.

    While the past is recorded it keeps more than that. Before 5.18 transformers handed all of it
    out, more than `get_mask_sizes` announces to the mask.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append and return the keys and values that the new tokens see."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        visible = self.sliding_window - 1 + key_states.shape[-2]
        return keys[:, :, -visible:], values[:, :, -visible:]
