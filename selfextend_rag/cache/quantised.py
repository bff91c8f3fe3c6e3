"""A layer that keeps its keys and values in few bits; attention sees them as they were rounded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfextend_rag.cache.full import FullLayer
from selfextend_rag.cache.rounding import RoundedTokens
from selfextend_rag.kv_bits import check_kv_bits
from selfextend_rag.positions import SelfExtend


class QuantisedLayer(FullLayer):
    """Keys ``[B, Hkv, S, D]`` and values ``[B, Hkv, S, Dv]`` of one layer, in 8 or 4 bits.

    `update` rounds what comes and returns all of it in the model's precision, made anew: that
    tensor lives as long as its user holds it. No grouped keys are kept, which would be larger than
    what is saved. See `selfextend_rag.cache.rounding` for what is rounded, and to what.

    Args:
        bits: 8 or 4.
        capacity: tokens to make room for at the first update; more is allocated when needed.
    """

    def __init__(self, bits: int, capacity: int = 0, **kwargs: Any) -> None:
        super().__init__(capacity, **kwargs)
        check_kv_bits(bits)
        self.bits = bits
        self._length = 0
        self._parts: tuple[RoundedTokens, RoundedTokens] | None = None  # of keys, of values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values and return all of them, those that came rounded too.

        Raises:
            CacheMismatchError: keys were cached plain after keys that were cached extended.
        """
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        self._check_noted(self._length)
        begin, end = self._length, self._length + key_states.shape[-2]
        parts = self._parts = self._room(key_states, value_states, end)
        parts[0].write(key_states, begin)
        parts[1].write(value_states, begin)
        self._length = end
        keys = parts[0].read(end)
        keys.cache_layer = self  # type: ignore[attr-defined]  # how attention finds us
        return keys, parts[1].read(end)

    def restored_keys(self) -> Tensor:
        """Return all keys, ``[B, Hkv, S, D]``, as attention sees them.

        Raises:
            ValueError: the layer is empty.
        """
        if self._parts is None:
            raise ValueError("the layer holds no keys yet")
        return self._parts[0].read(self._length)

    def get_seq_length(self) -> int:
        """Return how many tokens are held."""
        return self._length

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens; see `transformers.DynamicLayer.crop`."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens, got {tokens_to_remove}")
        self._length = max(0, self._length + tokens_to_remove)
        self._noted = min(self._noted, self._length)

    def reset(self) -> None:
        """Drop everything, the buffers too."""
        self._parts, self._length = None, 0
        super().reset()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Put the rows of the batch in another order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch alone."""
        if self._parts is not None:
            keys, values = self._parts
            rows = indices.to(keys.exact.device)
            self._parts = keys.taken(rows), values.taken(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        if self._parts is not None:
            rows = torch.arange(len(self._parts[0].exact)).repeat_interleave(repeats)
            self.batch_select_indices(rows)

    def offload(self) -> None:
        """Move what is held to main memory."""
        self._move("cpu")

    def prefetch(self) -> None:
        """Move what is held back to the device it came from."""
        self._move(self.device)

    def tensors(self) -> dict[str, Tensor]:
        """Return views of all that is held, by name."""
        if self._parts is None:
            return {}
        return {
            f"{kind}.{name}": view
            for kind, part in zip(("keys", "values"), self._parts, strict=True)
            for name, view in part.stored(self._length).items()
        }

    def emptied(
        self, length: int, filled_under: SelfExtend | None, capacity: int
    ) -> QuantisedLayer:
        """Return a layer of the same shapes, whose ``length`` tokens are to be written."""
        new = QuantisedLayer(self.bits, max(capacity, length))
        if self._parts is None:
            return new
        new.dtype, new.device, new.is_initialized = self.dtype, self.device, True
        keys, values = self._parts
        new._parts = (
            RoundedTokens(keys.exact, self.bits, new.capacity),
            RoundedTokens(values.exact, self.bits, new.capacity),
        )
        new._length = length
        return self._note(new, length, filled_under)

    @property
    def nbytes(self) -> int:
        """Bytes held, free room included."""
        return sum(part.nbytes for part in self._parts or ())

    def _room(self, keys: Tensor, values: Tensor, end: int) -> tuple[RoundedTokens, RoundedTokens]:
        """Return parts that hold what is there and have room for ``end`` tokens."""
        old = self._parts
        if old is not None and end <= old[0].capacity:
            return old
        self.capacity = self._enough(end, 0 if old is None else old[0].capacity)
        new = (
            RoundedTokens(keys, self.bits, self.capacity),
            RoundedTokens(values, self.bits, self.capacity),
        )
        for before, after in zip(old or (), new, strict=False):
            held = before.stored(self._length)
            for name, place in after.stored(self._length).items():
                place.copy_(held[name])
        return new

    def _move(self, device: torch.device | str) -> None:
        if self._parts is not None and self._parts[0].exact.device != torch.device(device):
            keys, values = self._parts
            self._parts = keys.to(device), values.to(device)
