"""Layers of a key-value cache: those that keep every token, and those that keep a window."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from selfextend_rag.attention import GroupedKeys
from selfextend_rag.errors import CacheMismatchError
from selfextend_rag.positions import PositionMap

FIRST_CAPACITY = 256
GROWTH = 1.5


class FullLayer(DynamicLayer):
    """Keys and values of one layer, all that came; un-rotated when the model is extended.

    Attributes:
        filled_under: the settings under which the cached keys came; None for plain attention.
        grouped_keys: rotated keys that are kept with the others; None where none are kept.

    Args:
        capacity: tokens to allocate at the first update; more is allocated when needed.
        expected: see `expect`.
    """

    grouped_keys: GroupedKeys | None = None

    def __init__(self, capacity: int = 0, expected: PositionMap | None = None) -> None:
        DynamicLayer.__init__(self)
        self.capacity = max(capacity, 0)
        self.filled_under: PositionMap | None = None
        self._expected = expected

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return views of all that is held and can't be made again, by name."""

    @abstractmethod
    def emptied(self, length: int, filled_under: PositionMap | None, capacity: int) -> FullLayer:
        """Return a layer of the same shapes, whose ``length`` tokens are to be written.

        Its ``tensors`` are views of so many tokens, with space for ``capacity``.
        """

    @abstractmethod
    def append(self, other: FullLayer) -> None:
        """Append what a layer of the same kind holds, as it is, under the settings of this one."""

    @abstractmethod
    def handed_out(self, keys: Tensor) -> bool:
        """Return whether this very tensor is what the latest `update` returned as keys."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held, free space included."""

    def expect(self, settings: PositionMap) -> None:
        """Note that the next tokens come from an extended model; a plain one never says so."""
        self._expected = settings

    def part(self, begin: int, end: int, capacity: int) -> FullLayer:
        """Return a copy of the tokens from ``begin`` to ``end``, with space for ``capacity``."""
        new = self.emptied(max(0, end - begin), self.filled_under, capacity)
        mine = self.tensors()
        for name, place in new.tensors().items():
            place.copy_(mine[name][:, :, begin:end])
        return new

    def reset(self) -> None:
        """Drop everything, the buffers too."""
        self.filled_under = self.keys = self.values = None
        self.is_initialized = False

    def _enough(self, end: int, allocated: int) -> int:
        """Return the tokens to allocate: as was asked for, or half as many more than there are."""
        wanted = self.capacity if end <= self.capacity else int(allocated * GROWTH)
        return max(end, wanted, FIRST_CAPACITY)

    def _begin_update(self, length: int, new_keys: Tensor) -> None:
        """Note whose tokens come after ``length`` others; refuse to mix settings."""
        if not self.is_initialized:
            self.dtype, self.device = new_keys.dtype, new_keys.device
            self.is_initialized = True
        expected, self._expected = self._expected, None
        if length and expected != self.filled_under:
            raise CacheMismatchError(mismatch(length, self.filled_under, expected))
        self.filled_under = expected


def mismatch(tokens: int | str, before: PositionMap | None, now: PositionMap | None) -> str:
    """Return that a model of other settings can't continue cached tokens."""
    return (
        f"{tokens} tokens were cached under {before or 'plain attention'}, and can't be continued "
        f"under {now or 'plain attention'}; read them again with a new cache"
    )


class GrowingLayer(FullLayer):
    """Keys ``[B, Hkv, S, D]`` and values ``[B, Hkv, S, Dv]`` of one layer, in growing buffers.

    ``keys`` and ``values`` are views of the filled part.
    """

    def __init__(self, capacity: int = 0, expected: PositionMap | None = None) -> None:
        super().__init__(capacity, expected)
        self.grouped_keys: GroupedKeys = GroupedKeys()
        self._buffers: tuple[Tensor, Tensor] | None = None  # [B, Hkv, capacity, D], and D = Dv

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values and return all of them, as views.

        Raises:
            CacheMismatchError: the keys before came plain, or under other settings.
        """
        length = self.get_seq_length()
        self._begin_update(length, key_states)
        end = length + key_states.shape[-2]
        keys, values = self._buffers = self._with_space(key_states, value_states, length, end)
        keys[:, :, length:end] = key_states
        values[:, :, length:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def handed_out(self, keys: Tensor) -> bool:
        """Return whether this very tensor is what the latest `update` returned as keys."""
        return keys is self.keys

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens; see `transformers.DynamicLayer.crop`."""
        super().crop(tokens_to_remove)
        if self.keys is not None:
            self.grouped_keys.forget(self.keys.shape[-2])

    def reset(self) -> None:
        """Drop everything, the buffers too."""
        self.grouped_keys.clear()
        self._buffers = None
        super().reset()

    def tensors(self) -> dict[str, Tensor]:
        """Return views of keys and values, by name."""
        named = {"keys": self.keys, "values": self.values}
        return {name: x for name, x in named.items() if x is not None and x.numel()}

    def emptied(self, length: int, filled_under: PositionMap | None, capacity: int) -> GrowingLayer:
        """Return a layer of the same shapes, whose ``length`` tokens are to be written."""
        new = GrowingLayer(max(capacity, length))
        if self.keys is None or self.values is None:
            return new
        new.dtype, new.device, new.is_initialized = self.dtype, self.device, True
        keys, values = new._buffers = (
            _grown(None, self.keys, 0, new.capacity),
            _grown(None, self.values, 0, new.capacity),
        )
        new.keys, new.values = keys[:, :, :length], values[:, :, :length]
        new.filled_under = filled_under
        return new

    def append(self, other: FullLayer) -> None:
        """Append what a layer of the same kind holds, as it is, under the settings of this one."""
        if other.keys is not None and other.values is not None:
            self._expected = self.filled_under
            self.update(other.keys, other.values)

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, and grouped keys, free space included."""
        return sum(x.nbytes for x in self._buffers or ()) + self.grouped_keys.nbytes

    def _with_space(
        self, new_keys: Tensor, new_values: Tensor, length: int, end: int
    ) -> tuple[Tensor, Tensor]:
        """Buffers that hold the first ``length`` tokens and have space for ``end``."""
        buffers, held, allocated = self._buffers, self.keys, 0
        if buffers and (held is None or held.data_ptr() == buffers[0].data_ptr()):
            allocated = buffers[0].shape[2]
            if end <= allocated and len(buffers[0]) == len(new_keys):
                return buffers
        else:  # rows were rearranged, moved or replaced since the last update
            self.grouped_keys.clear()
        self.capacity = self._enough(end, allocated)
        return (
            _grown(self.keys, new_keys, length, self.capacity),
            _grown(self.values, new_values, length, self.capacity),
        )


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
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append and return the keys and values that the new tokens see."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        visible = self.sliding_window - 1 + key_states.shape[-2]
        return keys[:, :, -visible:], values[:, :, -visible:]
