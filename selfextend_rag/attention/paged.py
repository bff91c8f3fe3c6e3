"""SelfExtend attention over keys and values in blocks, as servers with a paged cache keep them.

Each key is stored once, rotated to its *grouped* position. Far pairs use it as it is, wherever its
block is; the few neighbors of a query are rotated on to their own positions when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selfextend_rag.attention.blocked import causal_attention, stored_attention
from selfextend_rag.attention.partial import (
    AttentionSpec,
    add_sinks,
    merge,
    partial_attention,
)
from selfextend_rag.rope import RotaryTables

_SHORT_RUN = 4  # blocks; a copy of all costs less than a call for each of such runs
_STEPS_KEPT = 64  # positions of queries; as many sequences of a step share angles among layers
_FEW = 4  # tokens that are stored one by one
_GROWTH = 4096  # positions by which tables grow at least


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """The cache of one layer: keys ``[N, Hkv, b, D]``, values alike, in N blocks of b tokens."""

    keys: Tensor
    values: Tensor

    def store(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Write keys at their grouped positions, and values, ``[T, Hkv, D]``, to slots ``[T]``.

        Slot s is place ``s % b`` of block ``s // b``; a negative one is nowhere.
        """
        size = self.keys.shape[2]
        if len(slots) <= _FEW and slots.device.type == "cpu":
            for token, slot in enumerate(slots.tolist()):
                if slot >= 0:
                    self.keys[slot // size, :, slot % size] = k[token]
                    self.values[slot // size, :, slot % size] = v[token]
            return
        used = slots >= 0
        if not bool(used.all()):
            k, v, slots = k[used], v[used], slots[used]
        block, place = slots // size, slots % size
        self.keys[block, :, place] = k.to(self.keys.dtype)
        self.values[block, :, place] = v.to(self.values.dtype)

    def gather(self, blocks: Sequence[int], begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Return copies of keys and values ``[1, Hkv, end - begin, D]`` of the blocks' tokens."""
        k, v = (
            torch.cat([x[block] for block in blocks], dim=1)[None, :, begin:end]
            for x in (self.keys, self.values)
        )
        return k, v

    def in_place(self, blocks: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield keys and values ``[n, Hkv, b, D]``, in any order of the blocks and mostly views."""
        runs = _runs(sorted(blocks))
        if len(runs) * _SHORT_RUN > len(blocks) > _SHORT_RUN:
            index = torch.tensor(blocks, device=self.keys.device)
            yield self.keys[index], self.values[index]
            return
        for first, count in runs:
            yield self.keys[first : first + count], self.values[first : first + count]


def _runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Return first block and length of each run of consecutive ones."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and block == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((block, 1))
    return runs


class Angles:
    """Rotations that the steps of all layers with one rotary layout share; they grow on demand."""

    def __init__(self, spec: AttentionSpec) -> None:
        self._own, self._grouped = spec.own_bands
        self._rotary = spec.rotary
        self._to_own: RotaryTables | None = None
        self._steps: dict[tuple[int, torch.dtype], tuple[RotaryTables, RotaryTables]] = {}

    def to_own(self, end: int, like: Tensor) -> RotaryTables:
        """Return what rotates stored keys on to their own positions, for ``end`` or more."""
        tables = self._to_own
        if tables is None or len(tables.cos) < end or tables.cos.device != like.device:
            size = max(end, _GROWTH, 0 if tables is None else 2 * len(tables.cos))
            positions = torch.arange(size, device=like.device)
            steps = positions - self._grouped.key_position(positions)
            tables = self._to_own = replace(self._rotary, scale=1.0).tables(steps, like)
        return tables

    def step(self, position: int, like: Tensor) -> tuple[RotaryTables, RotaryTables]:
        """Return what rotates a query for its grouped keys, and its W neighbors to go with that.

        A neighbor is rotated from its stored position to the one from which the query, at its
        *grouped* position, is as far as it is. The layers of a step ask for the same.
        """
        kept = self._steps.get((position, like.dtype))
        if kept is None or kept[0].cos.device != like.device:
            if len(self._steps) >= _STEPS_KEPT:
                self._steps.clear()
            here = torch.tensor([position], device=like.device)
            far = self._grouped.query_position(here)
            near = here + torch.arange(1 - self._grouped.nearest, 1, device=like.device)
            steps = far - (here - near) - self._grouped.key_position(near)
            turned = replace(self._rotary, scale=1.0).tables(steps, like)
            kept = self._rotary.tables(far, like), turned
            self._steps[position, like.dtype] = kept
        return kept


def paged_attention(
    q: Tensor, pages: Pages, blocks: Sequence[int], total: int, spec: AttentionSpec, angles: Angles
) -> Tensor:
    """Return SelfExtend attention of one sequence, ``[T, H, Dv]``.

    Args:
        q: ``[T, H, D]`` un-rotated, at the last T of ``total`` positions.
        pages: with the keys and values of all of them, the newest included.
        blocks: of the sequence, in order.
        spec: the layer's, with a band of grouped keys.
        angles: made of this spec, or of another with the same rotary and bands.
    """
    window = spec.own_bands[-1].nearest
    if len(q) == 1 and total > window:
        return _step(q, pages, blocks, total, spec, angles)
    k, v = pages.gather(blocks, 0, total)
    to_own = angles.to_own(total, q)
    return stored_attention(q.transpose(0, 1)[None], k, v, spec, to_own)[0].transpose(0, 1)


def plain_attention(
    q: Tensor, pages: Pages, blocks: Sequence[int], total: int, spec: AttentionSpec
) -> Tensor:
    """Return ordinary attention of one sequence whose keys were stored at their *own* positions.

    Arguments and result are those of `paged_attention`.
    """
    k, v = pages.gather(blocks, 0, total)
    positions = torch.arange(total - len(q), total, device=q.device)
    queries = spec.rotary.rotate(q.transpose(0, 1)[None], positions)
    if len(q) == 1:
        out, lse = partial_attention(queries, k, v, spec)
    else:
        out, lse = causal_attention(queries, k, v, spec)
    if spec.sinks is not None:
        out = add_sinks(out, lse, spec.sinks)
    return out[0].transpose(0, 1)


def _step(
    q: Tensor, pages: Pages, blocks: Sequence[int], total: int, spec: AttentionSpec, angles: Angles
) -> Tensor:
    """One query with far keys: whole blocks of these in place, the rest of them, its neighbors.

    Query heads that share their keys are queries of one head here, so that keys are read once.
    """
    (_, heads, dim), (_, kv_heads, size, _) = q.shape, pages.keys.shape
    split = total - spec.own_bands[-1].nearest
    far, near = angles.step(total - 1, q)
    q = spec.rotary.rotate(q.view(1, heads, 1, dim), far)
    q = q.view(1, kv_heads, heads // kv_heads, dim)
    whole = split // size
    border = split - whole * size
    stored, v = pages.gather(blocks[whole:], 0, total - whole * size)
    k = torch.empty_like(stored)
    k[:, :, :border] = stored[:, :, :border]
    spec.rotary.rotate(stored[:, :, border:], near, out=k[:, :, border:])
    out, lse = partial_attention(q, k, v, spec)
    if whole:
        for keys, values in pages.in_place(blocks[:whole]):
            part = _of_blocks(q, keys, values, spec)
            out, lse = merge(out, lse, *part)
    out, lse = out.reshape(1, heads, 1, -1), lse.reshape(1, heads, 1)
    if spec.sinks is not None:
        out = add_sinks(out, lse, spec.sinks)
    return out[0].transpose(0, 1)


def _of_blocks(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """Attention of rotated queries ``[1, Hkv, g, D]`` over blocks, each done by itself."""
    if len(k) == 1:
        return partial_attention(q, k, v, spec)
    outs, lses = partial_attention(q.expand(len(k), -1, -1, -1), k, v, spec)
    peak = lses.amax(0, keepdim=True)
    weights = (lses - peak).exp_()
    total = weights.sum(0, keepdim=True)
    out = (outs.to(weights.dtype) * (weights / total).unsqueeze(-1)).sum(0, keepdim=True)
    return out.to(q.dtype), peak + total.log_()
