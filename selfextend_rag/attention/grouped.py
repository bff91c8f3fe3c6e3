"""Rotated keys, kept from one token to the next: far ones grouped, neighbors as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from selfextend_rag.attention.partial import AttentionSpec
from selfextend_rag.positions import Band
from selfextend_rag.rope import RotaryLayout


class GroupedKeys:
    """A buffer of grouped, rotated keys of a cache layer, besides its un-rotated ones.

    Neither a key's own position nor its grouped one ever changes, so each key is rotated once as a
    neighbor and once more when it has become a far one. The owner of the keys calls `forget` or
    `clear` when cached keys are dropped or rows are rearranged; a change of rotation, bands or
    padding is noticed here and starts the buffer again.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None  # [B, Hkv, capacity, D]
        self._done = 0  # slots that hold grouped keys
        self._near = (0, 0)  # from the first to behind the last slot that holds a neighbor
        self._made_for: tuple[RotaryLayout, Band, tuple[int, ...]] | None = None

    def reach(
        self,
        k: Tensor,
        end: int,
        spec: AttentionSpec,
        *,
        starts: tuple[int, ...] = (0,),
        neighbors: bool = False,
        capacity: int = 0,
    ) -> Tensor:
        """Return the buffer, ``[B, Hkv, >= S, D]``, its first ``end`` slots grouped and rotated.

        Args:
            k: ``[B, Hkv, S, D]`` un-rotated.
            end: how many slots are needed as grouped ones.
            spec: the layer's; its last band is that of the grouped keys.
            starts: for each row, or all, the slot of its position 0; before it is padding.
            neighbors: the slots from ``end`` to S are needed too, rotated to their own positions.
            capacity: slots to allocate when the buffer must grow.
        """
        bands = spec.own_bands
        made_for = (spec.rotary, bands[-1], starts if len(set(starts)) > 1 else starts[:1])
        if self._made_for != made_for:
            self._made_for, self._done, self._near = made_for, 0, (0, 0)
        buffer, total = self._fit(k, max(capacity, k.shape[2])), k.shape[2]

        def rotate(begin: int, end: int, band: Band) -> None:
            if begin < end:
                positions = torch.arange(begin, end, device=k.device)
                positions = positions - torch.tensor(made_for[2], device=k.device)[:, None]
                positions = band.key_position(positions if len(positions) > 1 else positions[0])
                spec.rotary.rotate(k[:, :, begin:end], positions, out=buffer[:, :, begin:end])

        rotate(self._done, end, bands[-1])
        self._done = end  # what comes after is used as neighbors alone
        first, last = max(self._near[0], end), min(self._near[1], total)
        if neighbors:
            if first >= last:
                first = last = total
            rotate(end, first, bands[0])
            rotate(last, total, bands[0])
            first, last = end, total
        self._near = (first, last)
        return buffer

    def _fit(self, k: Tensor, capacity: int) -> Tensor:
        old = self._buffer
        if old is not None and (len(old), old.dtype, old.device) != (len(k), k.dtype, k.device):
            old, self._done = None, 0
        if old is not None and old.shape[2] >= k.shape[2]:
            return old
        self._buffer = buffer = k.new_empty((*k.shape[:2], capacity, k.shape[3]))
        self._near = (0, 0)
        if old is not None and self._done:
            buffer[:, :, : self._done] = old[:, :, : self._done]
        return buffer

    def forget(self, length: int) -> None:
        """Drop everything from slot ``length`` on."""
        self._done = min(self._done, length)
        self._near = (self._near[0], min(self._near[1], length))

    def clear(self) -> None:
        """Free the buffer."""
        self._buffer, self._done, self._near, self._made_for = None, 0, (0, 0), None

    @property
    def nbytes(self) -> int:
        """Bytes held by the buffer."""
        return 0 if self._buffer is None else self._buffer.nbytes
