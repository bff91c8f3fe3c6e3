"""SelfExtend attention in blocks: exact, on any device, memory linear in the length.

Each (query, key) pair is scored once. With keys 0..S-1 and queries p0..S-1:

* queries below W have neighbors only: ordinary causal attention;
* the grouped pairs of the others are causal too, shifted by W: query p sees keys 0..p-W;
* their neighbor pairs are a band of width W, cut in tiles of queries that share one mask.

The two parts of a query are merged by their log-sum-exp into one softmax.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selfextend_rag.attention.band import band_attention, unused_keys
from selfextend_rag.attention.partial import merge, partial_attention
from selfextend_rag.attention.spec import AttentionSpec
from selfextend_rag.positions import Band
from selfextend_rag.rope import RotaryTables, rotation_dtype

_WORTH_SPLITTING = 1 << 18  # numbers of a tensor from which heads are done a few at a time


def blocked_attention(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, grouped_keys: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (out, log-sum-exp), ``[B, H, T, Dv]`` and ``[B, H, T]``, of unpadded rows.

    Args:
        q: ``[B, H, T, D]`` un-rotated, at the last T of the S positions, T > 0.
        k, v: ``[B, Hkv, S, D]`` un-rotated and ``[B, Hkv, S, Dv]``, at positions 0..S-1.
        spec: the layer's; its sinks are left to the caller, see `add_sinks`.
        grouped_keys: ``[B, Hkv, S, D]`` whose first S - W keys are ``k`` rotated to their grouped
            positions; for a lone query, the last W are ``k`` rotated to their own positions. Made
            here when not given.
    """
    length, total = q.shape[2], k.shape[2]
    far = spec.far_band(total)
    if far is None:
        return _plain(q, k, v, spec, total)
    if length == 1:
        return _decode(q, k, v, spec, far, grouped_keys)
    near = max(0, far.nearest - (total - length))  # queries without grouped pairs
    out = v.new_empty(len(q), length, q.shape[1], v.shape[3]).transpose(1, 2)
    far_lse = _extended(q[:, :, near:], k, v, spec, far, grouped_keys, out[:, :, near:])
    if not near:
        return out, far_lse
    near_out, near_lse = _plain(q[:, :, :near], k, v, spec, far.nearest)
    out[:, :, :near] = near_out
    return out, torch.cat([near_lse, far_lse], dim=2)


def _plain(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, end: int) -> tuple[Tensor, Tensor]:
    """Ordinary attention of queries at the last positions before ``end``."""
    positions = torch.arange(end, device=q.device)
    q = spec.rotary.rotate(q, positions[end - q.shape[2] :])
    k = spec.rotary.rotate(k[:, :, :end], positions)
    return _causal(q, k, v[:, :, :end], spec)


def _causal(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """Causal attention of rotated queries at the last T of the S keys."""
    past = k.shape[2] - q.shape[2]
    square = partial_attention(q, k[:, :, past:], v[:, :, past:], spec, causal=True)
    if not past:
        return square
    before = partial_attention(q, k[:, :, :past], v[:, :, :past], spec)
    return merge(*before, *square)


def _decode(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, far: Band, grouped_keys: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One query: its far keys are grouped, its neighbors at their own positions."""
    rotary, total = spec.rotary, k.shape[2]
    split = total - far.nearest
    positions = torch.arange(total, device=q.device)
    if grouped_keys is None:
        grouped_keys = torch.empty_like(k)
        grouped = far.key_position(positions[:split])
        rotary.rotate(k[:, :, :split], grouped, out=grouped_keys[:, :, :split])
        rotary.rotate(k[:, :, split:], positions[split:], out=grouped_keys[:, :, split:])
    here = positions[-1:]
    grouped_q = rotary.rotate(q, far.query_position(here))
    before = partial_attention(grouped_q, grouped_keys[:, :, :split], v[:, :, :split], spec)
    near_q = rotary.rotate(q, here)
    near = partial_attention(near_q, grouped_keys[:, :, split:], v[:, :, split:], spec)
    return merge(*before, *near)


def _extended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    far: Band,
    grouped_keys: Tensor | None,
    out: Tensor,
) -> Tensor:
    """Queries that all have grouped pairs: grouped part and neighbor band, merged into ``out``."""
    tables = _Tables.made(q, k, spec, far, grouped_keys is None)
    share = q.shape[1] // k.shape[1]
    step = _heads_at_once(k)
    query_space = torch.empty_like(q[:, : step * share])
    key_space = None
    if grouped_keys is None:
        key_space = torch.empty_like(k[:, :step, : max(tables.split, k.shape[2] - tables.start)])
    lses = []
    for head in range(0, k.shape[1], step):
        own, others = slice(head, head + step), slice(head * share, (head + step) * share)
        given = None if grouped_keys is None else grouped_keys[:, own]
        lses.append(
            _extended_heads(
                q[:, others], k[:, own], v[:, own], spec, tables,
                given, key_space, query_space, out[:, others],
            )
        )  # fmt: skip
    return lses[0] if len(lses) == 1 else torch.cat(lses, dim=1)


def _heads_at_once(k: Tensor) -> int:
    """Return how many kv heads to attend to at a time.

    On a CPU, as many as there are threads: what is made for a few heads stays in the cache, and
    memory that is used again needs no new pages. They divide the heads, so all calls are alike.
    """
    heads = k.shape[1]
    threads = torch.get_num_threads()
    if k.device.type != "cpu" or heads % threads or k[:, :threads].numel() < _WORTH_SPLITTING:
        return heads
    return threads


class _Tables(NamedTuple):
    """Where the queries and keys of one call are, for all heads."""

    split: int  # keys before it are grouped for some query
    start: int  # the first key that the neighbor band touches
    skip: int  # keys of that band before the oldest neighbor of the first query
    window: int
    grouped_queries: RotaryTables
    grouped_keys: RotaryTables | None
    near: RotaryTables  # of keys ``start`` and later; the queries are the last of them

    @classmethod
    def made(cls, q: Tensor, k: Tensor, spec: AttentionSpec, far: Band, keys_too: bool) -> _Tables:
        length, total, window = q.shape[2], k.shape[2], far.nearest
        split = total - window
        first = split - length + 1  # the oldest neighbor of the first query
        skip = min(first, unused_keys(q, window))
        positions = torch.arange(total, device=q.device)
        dtype = rotation_dtype(q)
        # grouped positions come again and again: far fewer angles than tokens
        angles = spec.rotary.tables(positions[: far.query_position(total - 1) + 1], dtype)
        queries = far.query_position(positions[total - length :])
        keys = far.key_position(positions[:split])
        return cls(
            split=split,
            start=first - skip,
            skip=skip,
            window=window,
            grouped_queries=RotaryTables(angles.cos[queries], angles.sin[queries]),
            grouped_keys=RotaryTables(angles.cos[keys], angles.sin[keys]) if keys_too else None,
            near=spec.rotary.tables(positions[first - skip :], dtype),
        )


def _extended_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    tables: _Tables,
    grouped_keys: Tensor | None,
    key_space: Tensor | None,
    query_space: Tensor,
    out: Tensor,
) -> Tensor:
    """Some heads of `_extended`; rotated keys and queries are written into the spaces."""
    split, start, length = tables.split, tables.start, q.shape[2]
    near_space = None
    if grouped_keys is None:
        assert key_space is not None
        assert tables.grouped_keys is not None
        near_space = key_space[:, :, : k.shape[2] - start]
        grouped_keys = spec.rotary.rotate(
            k[:, :, :split], tables.grouped_keys, out=key_space[:, :, :split]
        )
    spec.rotary.rotate(q, tables.grouped_queries, out=query_space)
    grouped = _causal(query_space, grouped_keys[:, :, :split], v[:, :, :split], spec)

    # the grouped keys and queries have done their work: what was made here is written over
    neighbor_keys = spec.rotary.rotate(k[:, :, start:], tables.near, out=near_space)
    here = RotaryTables(*(table[-length:] for table in tables.near))
    spec.rotary.rotate(q, here, out=query_space)
    band = band_attention(
        query_space, neighbor_keys, v[:, :, start:], spec, tables.window, tables.skip
    )
    return merge(*grouped, *band, into=out)[1]
