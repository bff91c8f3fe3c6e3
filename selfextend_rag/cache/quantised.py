"""A layer that keeps its keys and values in 8 or 4 bits; attention sees them as they were rounded.

What a token is rounded to depends on that token alone. So it is the same whether a prompt is read
at once, in chunks or token by token, and cutting back, copying and saving change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal
from weakref import ref

import torch
from torch import Tensor

from selfextend_rag.cache.layers import FullLayer
from selfextend_rag.positions import PositionMap

KV_BITS = (4, 8)
"""What a key or value can be rounded to."""

_MOST_CHANNELS = {8: 64, 4: 32}  # of a group; a smaller group is finer and takes more scales
_SCALE_BYTES = 4  # of a group: a step and a lowest value
_AT_ONCE = {"cpu": 1 << 17}  # numbers that are worked on at a time: they stay in the processor
_AT_ONCE_ELSEWHERE = 1 << 22
_UPWARDS = 1 + 2**-7  # what a rounding to bfloat16 can take away, and more
_SMALLEST = torch.finfo(torch.bfloat16).tiny
_KINDS = ("keys", "values")


def check_kv_bits(bits: int | None) -> None:
    """Raise a ValueError for neither None, the model's own precision, nor one of `KV_BITS`."""
    if bits is not None and (isinstance(bits, bool) or bits not in KV_BITS):
        raise ValueError(f"kv_bits must be 8, 4 or None (the model's own precision), got {bits!r}")


def why_not_rounded(bits: int, kinds: Iterable[str]) -> str:
    """Return what to say of a model without any layer whose keys can be rounded."""
    named = ", ".join(sorted(set(kinds))) or "none"
    return (
        f"kv_bits={bits} would change nothing: none of the model's layers keeps all tokens "
        f"(they are {named}); leave kv_bits out"
    )


def groups_in(channels: int, bits: int) -> int:
    """Return in how many equal groups the channels of a head are rounded."""
    fewest = -(-channels // _MOST_CHANNELS[bits])
    return next(n for n in range(fewest, channels + 1) if channels % n == 0)


def head_bytes(channels: int, bits: int) -> int:
    """Return the bytes of one head's key, or value, of one token."""
    return -(-channels * bits // 8) + _SCALE_BYTES * groups_in(channels, bits)


class QuantisedLayer(FullLayer):
    """Keys ``[B, Hkv, S, D]`` and values ``[B, Hkv, S, Dv]`` of one layer, in 8 or 4 bits.

    `update` rounds what comes and returns all of it in the model's precision, restored: that tensor
    lives as long as its user holds it. No grouped keys are kept, which would be larger than what is
    saved.

    Args:
        bits: 8 or 4.
        capacity: tokens to allocate at the first update; more is allocated when needed.
    """

    def __init__(self, bits: int, capacity: int = 0, expected: PositionMap | None = None) -> None:
        super().__init__(capacity, expected)
        check_kv_bits(bits)
        self.bits = bits
        self._length = 0
        self._buffers: dict[str, Tensor] = {}  # codes and scales by name, tokens in dimension 2
        self._channels: dict[str, int] = {}
        self._handed_out: ref[Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values and return all of them, those that came rounded too.

        Raises:
            CacheMismatchError: the keys before came plain, or under other settings.
        """
        self._begin_update(self._length, key_states)
        begin, end = self._length, self._length + key_states.shape[2]
        if not self._buffers:
            self._begin(key_states, value_states)
        self._grow(end)
        for kind, new in zip(_KINDS, (key_states, value_states), strict=True):
            codes, scales = self._buffers[f"{kind}.codes"], self._buffers[f"{kind}.scales"]
            for some in _slices(new):
                there = slice(begin + some.start, begin + some.stop)
                codes[:, :, there], scales[:, :, there] = _rounded(new[:, :, some], self.bits)
        self._length = end
        keys = self.restored("keys")
        self._handed_out = ref(keys)
        return keys, self.restored("values")

    def handed_out(self, keys: Tensor) -> bool:
        """Return whether this very tensor is what the latest `update` returned as keys."""
        return self._handed_out is not None and self._handed_out() is keys

    def restored(self, kind: Literal["keys", "values"], capacity: int = 0) -> Tensor:
        """Return all keys or values, ``[B, Hkv, S, D]``, as attention sees them, as a new tensor.

        Args:
            kind: which of them.
            capacity: tokens of the tensor, where there are to be more than S; those are not set.

        Raises:
            ValueError: the layer is empty.
        """
        if not self._buffers:
            raise ValueError("the layer holds no keys yet")
        codes, scales = self._buffers[f"{kind}.codes"], self._buffers[f"{kind}.scales"]
        shape = (*codes.shape[:2], max(capacity, self._length), self._channels[kind])
        found = torch.empty(shape, dtype=self.dtype, device=codes.device)
        for some in _slices(found[:, :, : self._length]):
            _restore(codes[:, :, some], scales[:, :, some], self.bits, found[:, :, some])
        return found

    def get_seq_length(self) -> int:
        """Return how many tokens are held."""
        return self._length

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens; see `transformers.DynamicLayer.crop`."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens, got {tokens_to_remove}")
        self._length = max(0, self._length + tokens_to_remove)

    def reset(self) -> None:
        """Drop everything, the buffers too."""
        self._buffers, self._length = {}, 0
        super().reset()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Put the rows of the batch in another order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch alone."""
        self._change(lambda x: x[indices.to(x.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        self._change(lambda x: x.repeat_interleave(repeats, 0))

    def offload(self) -> None:
        """Move what it holds to main memory."""
        self._change(lambda x: x.to("cpu"))

    def prefetch(self) -> None:
        """Move what is held back to the device it came from."""
        self._change(lambda x: x.to(self.device))

    def tensors(self) -> dict[str, Tensor]:
        """Return views of all that is held, by name."""
        return {name: x[:, :, : self._length] for name, x in self._buffers.items()}

    def emptied(
        self, length: int, filled_under: PositionMap | None, capacity: int
    ) -> QuantisedLayer:
        """Return a layer of the same shapes, whose ``length`` tokens are to be written."""
        new = QuantisedLayer(self.bits, max(capacity, length))
        if not self._buffers:
            return new
        new.dtype, new.device, new.is_initialized = self.dtype, self.device, True
        new._buffers = {name: _like(x, new.capacity) for name, x in self._buffers.items()}
        new._channels, new._length = self._channels, length
        new.filled_under = filled_under
        return new

    def append(self, other: FullLayer) -> None:
        """Append what a layer of the same kind and bits holds; nothing is rounded again."""
        begin, end = self._length, self._length + other.get_seq_length()
        self._grow(end)
        for name, new in other.tensors().items():
            self._buffers[name][:, :, begin:end] = new
        self._length = end

    @property
    def nbytes(self) -> int:
        """Bytes held, free space included."""
        return sum(x.nbytes for x in self._buffers.values())

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        """Make empty buffers for such keys and values."""
        for kind, new in zip(_KINDS, (keys, values), strict=True):
            codes, scales = _rounded(new[:, :, :0], self.bits)
            self._buffers |= {f"{kind}.codes": codes, f"{kind}.scales": scales}
            self._channels[kind] = new.shape[3]

    def _grow(self, end: int) -> None:
        """Make the buffers long enough for ``end`` tokens; what they hold is kept."""
        held = self._buffers["keys.codes"].shape[2]
        if end <= held:
            return
        self.capacity = self._enough(end, held)
        old = self.tensors()
        self._buffers = {name: _like(x, self.capacity) for name, x in old.items()}
        for name, x in old.items():
            self._buffers[name][:, :, : self._length] = x

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        self._buffers = {name: change(x) for name, x in self._buffers.items()}


def _like(buffer: Tensor, capacity: int) -> Tensor:
    return buffer.new_empty((*buffer.shape[:2], capacity, *buffer.shape[3:]))


def _slices(tokens: Tensor) -> list[slice]:
    """Return slices of a few tokens of ``[B, Hkv, T, D]`` each."""
    each = max(1, tokens.shape[0] * tokens.shape[1] * tokens.shape[3])
    step = max(1, _AT_ONCE.get(tokens.device.type, _AT_ONCE_ELSEWHERE) // each)
    length = tokens.shape[2]
    return [slice(at, min(at + step, length)) for at in range(0, length, step)]


def _rounded(tokens: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return codes and scales of ``[B, Hkv, T, D]`` numbers.

    Codes are ``[B, Hkv, T, bytes]``; of 4 bits, the first half of the channels is in the low halves
    of the bytes. Scales are ``[B, Hkv, T, groups * 2]``, step and lowest value of each group of
    channels. The lowest value is rounded down and the step up, so that no number is out of range
    and none is off by more than half a step.
    """
    channels, levels = tokens.shape[-1], (1 << bits) - 1
    groups = groups_in(channels, bits)
    grouped = tokens.float().view(*tokens.shape[:3], groups, channels // groups)
    lowest, highest = grouped.aminmax(dim=-1, keepdim=True)
    below = lowest - lowest.abs() * (_UPWARDS - 1)
    lowest = torch.where(lowest.bfloat16() > lowest, below, lowest).bfloat16()
    step = ((highest - lowest) / levels * _UPWARDS).clamp(min=_SMALLEST).bfloat16()
    codes = ((grouped - lowest) / step).round_().clamp_(0, levels).to(torch.uint8).flatten(-2)
    if bits == 4:
        half = -(-channels // 2)
        high = torch.nn.functional.pad(codes[..., half:], (0, 2 * half - channels))
        codes = codes[..., :half] | (high << 4)
    return codes, torch.cat([step, lowest], dim=-1).flatten(-2)


def _restore(codes: Tensor, scales: Tensor, bits: int, into: Tensor) -> None:
    """Write the numbers of codes and scales to ``[B, Hkv, T, D]``."""
    pairs = scales.float().unflatten(-1, (-1, 2))
    exact = into if into.dtype == torch.float32 else torch.empty_like(into, dtype=torch.float32)
    if bits == 4:
        half = codes.shape[-1]
        exact[..., :half] = codes & 15
        exact[..., half:] = (codes >> 4)[..., : into.shape[-1] - half]
    else:
        exact.copy_(codes)
    exact.unflatten(-1, (pairs.shape[-2], -1)).mul_(pairs[..., :1]).add_(pairs[..., 1:])
    if exact is not into:
        into.copy_(exact)
