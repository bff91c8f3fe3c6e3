"""A layer that keeps its keys and values in few bits; attention sees them as they were rounded.

Channels of keys differ widely, each around a mean of its own, and that is so for all tokens alike.
The first tokens show it: every later one is taken relative to their mean and spread, channel by
channel, before its groups of channels are rounded. What a token is rounded to depends on itself and
on the first tokens alone. So it is the same whether a prompt is read at once, in pieces or token by
token, and cutting back, copying and saving change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from selfextend_rag.cache.layers import FullLayer
from selfextend_rag.kv_bits import EXACT_TOKENS, check_kv_bits, code_bytes, groups_in
from selfextend_rag.positions import SelfExtend

_AT_ONCE = {"cpu": 1 << 17}  # numbers that are worked on at a time: they stay in the processor
_AT_ONCE_ELSEWHERE = 1 << 22
_LEAST_SPREAD = 1 / 8  # of the spread of a head's channels together
_UPWARDS = 1 + 2**-7  # what a rounding to bfloat16 can take away, and more
_SMALLEST = torch.finfo(torch.bfloat16).tiny


class QuantisedLayer(FullLayer):
    """Keys ``[B, Hkv, S, D]`` and values ``[B, Hkv, S, Dv]`` of one layer, in 8 or 4 bits.

    `update` rounds what comes and returns all of it in the model's precision, made anew: that
    tensor lives as long as its user holds it. No grouped keys are kept, which would be larger than
    what is saved.

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


class RoundedTokens:
    """Tokens ``[B, Hkv, S, D]`` of which the caller knows how many there are.

    Attributes:
        exact: ``[B, Hkv, 64, D]``, the first tokens.
        codes: ``[B, Hkv, room, ...]`` bytes of the later ones; of 4 bits, the first half of the
            channels in the low halves of the bytes.
        scales: ``[B, Hkv, room, groups, 2]``, step and lowest value of each group.

    Args:
        like: shape, type and device of what will come.
        bits: 8 or 4.
        capacity: tokens to make room for.
    """

    def __init__(self, like: Tensor, bits: int, capacity: int) -> None:
        rows, channels = like.shape[:2], like.shape[3]
        room = max(0, capacity - EXACT_TOKENS)
        self.bits = bits
        self.exact = like.new_empty((*rows, EXACT_TOKENS, channels))
        self.codes = like.new_empty((*rows, room, code_bytes(channels, bits)), dtype=torch.uint8)
        self.scales = like.new_empty((*rows, room, groups_in(channels), 2), dtype=torch.bfloat16)
        self._usual = like.new_empty((*rows, 2, channels), dtype=torch.float32)
        self._known = False

    @property
    def capacity(self) -> int:
        """Return the tokens that there is room for."""
        return EXACT_TOKENS + self.codes.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes held, free room included."""
        return sum(x.nbytes for x in (self.exact, self.codes, self.scales, self._usual))

    def stored(self, length: int) -> dict[str, Tensor]:
        """Return views of all that the first ``length`` tokens are made of, by name.

        They may be written to before the first ``write`` or ``read``, not later.
        """
        later = max(0, length - EXACT_TOKENS)
        return {
            "exact": self.exact[:, :, :length],
            "codes": self.codes[:, :, :later],
            "scales": self.scales[:, :, :later],
        }

    def write(self, new: Tensor, begin: int) -> None:
        """Write tokens ``[B, Hkv, T, D]`` at a place up to the end of those that are there."""
        end, first = begin + new.shape[2], max(0, EXACT_TOKENS - begin)
        if first:
            self.exact[:, :, begin : min(end, EXACT_TOKENS)] = new[:, :, :first]
            self._known = False
        if end <= EXACT_TOKENS:
            return
        mean, spread = self._mean_and_spread()
        place = max(0, begin - EXACT_TOKENS)
        rest = new[:, :, first:]
        for some in self._slices(rest.shape[2]):
            codes, scales = _rounded((rest[:, :, some].float() - mean) / spread, self.bits)
            there = slice(place + some.start, place + some.stop)
            self.codes[:, :, there], self.scales[:, :, there] = codes, scales

    def read(self, length: int) -> Tensor:
        """Return the first ``length`` tokens in their own precision, as a new tensor."""
        rows, channels = self.exact.shape[:2], self.exact.shape[3]
        found = self.exact.new_empty((*rows, length, channels))
        found[:, :, :EXACT_TOKENS] = self.exact[:, :, :length]
        if length > EXACT_TOKENS:
            mean, spread = self._mean_and_spread()
            for some in self._slices(length - EXACT_TOKENS):
                there = found[:, :, EXACT_TOKENS + some.start : EXACT_TOKENS + some.stop]
                made = (
                    there
                    if there.dtype == torch.float32
                    else torch.empty_like(there, dtype=torch.float32)
                )
                _restore(self.codes[:, :, some], self.scales[:, :, some], self.bits, made)
                made.mul_(spread).add_(mean)
                if made is not there:
                    there.copy_(made)
        return found

    def taken(self, rows: Tensor) -> RoundedTokens:
        """Return these rows of the batch, in this order, with the same room."""
        new = RoundedTokens(self.exact[rows], self.bits, 0)
        new.exact, new.codes, new.scales = self.exact[rows], self.codes[rows], self.scales[rows]
        return new

    def to(self, device: torch.device | str) -> RoundedTokens:
        """Return the same on another device."""
        new = RoundedTokens(self.exact.to(device), self.bits, 0)
        new.exact = self.exact.to(device)
        new.codes, new.scales = self.codes.to(device), self.scales.to(device)
        return new

    def _slices(self, tokens: int) -> Iterator[slice]:
        """Yield places of a few tokens at a time."""
        each = self.exact[:, :, :1].numel()
        step = max(1, _AT_ONCE.get(self.exact.device.type, _AT_ONCE_ELSEWHERE) // each)
        for begin in range(0, tokens, step):
            yield slice(begin, min(begin + step, tokens))

    def _mean_and_spread(self) -> tuple[Tensor, Tensor]:
        """Return each channel's mean and spread over the first tokens, ``[B, Hkv, 1, D]``."""
        if not self._known:
            exact = self.exact.float()
            mean = exact.mean(2, keepdim=True)
            variance = (exact - mean).square().mean(2, keepdim=True)
            together = variance.mean(3, keepdim=True).sqrt()
            # a channel that hardly varies here may do so later, and must not outweigh the others
            spread = torch.maximum(variance.sqrt(), together * _LEAST_SPREAD)
            self._usual = torch.cat([mean, torch.where(spread > 0, spread, 1)], dim=2)
            self._known = True
        return self._usual[:, :, :1], self._usual[:, :, 1:]


def _rounded(relative: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return codes and scales of ``[B, Hkv, T, D]`` numbers.

    The lowest value is rounded down and the step up, so that no number is out of range and none is
    off by more than half a step.
    """
    channels, levels = relative.shape[-1], (1 << bits) - 1
    grouped = relative.unflatten(-1, (groups_in(channels), -1))
    lowest, highest = grouped.aminmax(dim=-1, keepdim=True)
    lowest = (lowest - lowest.abs() * (_UPWARDS - 1)).bfloat16()
    step = ((highest - lowest) / levels * _UPWARDS).clamp(min=_SMALLEST).bfloat16()
    codes = ((grouped - lowest) / step).round_().clamp_(0, levels).to(torch.uint8).flatten(-2)
    if bits == 4:
        half = code_bytes(channels, bits)
        high = torch.nn.functional.pad(codes[..., half:], (0, 2 * half - channels))
        codes = codes[..., :half] | (high << 4)
    return codes, torch.cat([step, lowest], dim=-1)


def _restore(codes: Tensor, scales: Tensor, bits: int, into: Tensor) -> None:
    """Write the numbers that codes and scales stand for to ``[B, Hkv, T, D]``, float32."""
    if bits == 4:
        half = codes.shape[-1]
        into[..., :half] = codes & 15
        into[..., half:] = (codes >> 4)[..., : into.shape[-1] - half]
    else:
        into.copy_(codes)
    exact = scales.float()
    into.unflatten(-1, (scales.shape[-2], -1)).mul_(exact[..., :1]).add_(exact[..., 1:])
