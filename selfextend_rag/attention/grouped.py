"""Keys rotated to their grouped positions, kept from one token to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout


class GroupedKeys:
    """A buffer of grouped, rotated keys beside a cache layer's un-rotated ones.

    A key's grouped position never changes, so each key is rotated once. The owner of the keys
    calls `forget` or `clear` when cached keys are dropped or rows are rearranged; a change of
    rotation, settings or padding is noticed here and starts the buffer anew.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None  # [B, Hkv, capacity, D]
        self._done = 0  # slots that hold grouped keys
        self._made_for: tuple[RotaryLayout, SelfExtend, tuple[int, ...]] | None = None

    def reach(
        self,
        k: Tensor,
        end: int,
        capacity: int,
        rotary: RotaryLayout,
        settings: SelfExtend,
        starts: tuple[int, ...],
    ) -> Tensor:
        """Return the buffer, ``[B, Hkv, >= S, D]``, its first ``end`` slots grouped and rotated.

        Later slots are scratch space. ``starts`` holds for each row the slot of its position 0;
        what stands before it is padding.

        Args:
            k: ``[B, Hkv, S, D]`` un-rotated.
            end: how many slots are needed.
            capacity: slots to allocate when the buffer must grow.
        """
        made_for = (rotary, settings, starts)
        if self._made_for != made_for:
            self._made_for, self._done = made_for, 0
        self._fit(k, max(capacity, k.shape[2]))
        assert self._buffer is not None
        if self._done < end:
            slots = torch.arange(self._done, end, device=k.device)
            positions = slots - torch.tensor(starts, device=k.device)[:, None]
            if len(set(starts)) == 1:
                positions = positions[0]
            rotary.rotate(
                k[:, :, self._done : end],
                settings.key_position(positions),
                out=self._buffer[:, :, self._done : end],
            )
        self._done = end  # the caller may write over all slots from here on
        return self._buffer

    def forget(self, length: int) -> None:
        """Drop everything from slot ``length`` on."""
        self._done = min(self._done, length)

    def clear(self) -> None:
        """Free the buffer."""
        self._buffer, self._done, self._made_for = None, 0, None

    @property
    def nbytes(self) -> int:
        """Bytes held by the buffer."""
        return 0 if self._buffer is None else self._buffer.nbytes

    def _fit(self, k: Tensor, capacity: int) -> None:
        old = self._buffer
        if old is not None and old.shape[2] >= k.shape[2]:
            if (old.shape[0], old.dtype, old.device) == (k.shape[0], k.dtype, k.device):
                return
            old, self._done = None, 0
        self._buffer = k.new_empty((*k.shape[:2], capacity, k.shape[3]))
        if old is not None and self._done:
            self._buffer[:, :, : self._done] = old[:, :, : self._done]
