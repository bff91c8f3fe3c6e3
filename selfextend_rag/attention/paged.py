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
        used = slots >= 0
        if not bool(used.all()):
            k, v, slots = k[used], v[used], slots[used]
        block, place = slots // self.keys.shape[2], slots % self.keys.shape[2]
        self.keys[block, :, place] = k.to(self.keys.dtype)
        self.values[block, :, place] = v.to(self.values.dtype)

    def gather(self, blocks: Sequence[int], begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Return copies of keys and values ``[1, Hkv, end - begin, D]`` of the blocks' tokens."""
        index = torch.tensor(blocks, device=self.keys.device)
        k, v = (
            x[index].transpose(0, 1).flatten(1, 2)[None, :, begin:end]
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

    def to_own(self, end: int, like: Tensor) -> RotaryTables:
        """Return what rotates stored keys on to their own positions, for ``end`` or more."""
        tables = self._to_own
        if tables is None or len(tables.cos) < end or tables.cos.device != like.device:
            size = max(end, _GROWTH, 0 if tables is None else 2 * len(tables.cos))
            positions = torch.arange(size, device=like.device)
            steps = positions - self._grouped.key_position(positions)
            tables = self._to_own = replace(self._rotary, scale=1.0).tables(steps, like)
        return tables

    def queries(self, position: int, like: Tensor) -> tuple[RotaryTables, RotaryTables]:
        """Return what rotates a query for its neighbors, and for its grouped keys."""
        at = torch.tensor([position], device=like.device)
        places = torch.cat([at, self._grouped.query_position(at)])
        both = self._rotary.tables(places, like)
        return both.at(slice(0, 1)), both.at(slice(1, 2))


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
    q = q.view(1, kv_heads, heads // kv_heads, dim)
    near, far = angles.queries(total - 1, q)
    near_q, far_q = (
        spec.rotary.rotate(q.view(1, heads, 1, dim), x).view(q.shape) for x in (near, far)
    )
    whole = split // size
    k, v = pages.gather(blocks[whole:], 0, total - whole * size)
    border = split - whole * size
    to_own = angles.to_own(total, q).at(slice(split, total))
    neighbors = spec.rotary.rotate(k[:, :, border:], to_own)
    out, lse = partial_attention(near_q, neighbors, v[:, :, border:], spec)
    if border:
        part = partial_attention(far_q, k[:, :, :border], v[:, :, :border], spec)
        out, lse = merge(out, lse, *part)
    if whole:
        for keys, values in pages.in_place(blocks[:whole]):
            part = _of_blocks(far_q, keys, values, spec)
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
    lse = lses.logsumexp(0, keepdim=True)
    share = (lses - lse).exp()
    out = (outs.to(share.dtype) * share.unsqueeze(-1)).sum(0, keepdim=True)
    return out.to(q.dtype), lse
