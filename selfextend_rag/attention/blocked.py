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
from selfextend_rag.attention.merge import merge
from selfextend_rag.attention.partial import partial_attention
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout, RotaryTables, rotation_dtype

_WORTH_SPLITTING = 1 << 18  # numbers of a tensor from which heads are done a few at a time


def blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rotary: RotaryLayout,
    settings: SelfExtend,
    scaling: float,
    softcap: float | None = None,
    grouped_keys: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (out, log-sum-exp), ``[B, H, T, Dv]`` and ``[B, H, T]``, of unpadded rows.

    Args:
        q: ``[B, H, T, D]`` un-rotated, at the last T of the S positions, T > 0.
        k, v: ``[B, Hkv, S, D]`` un-rotated and ``[B, Hkv, S, Dv]``, at positions 0..S-1.
        rotary, settings, scaling, softcap: as in `self_extend_attention`.
        grouped_keys: ``[B, Hkv, S, D]`` whose first S - W keys are ``k`` rotated to their grouped
            positions; for a lone query, the last W are ``k`` rotated to their own positions. Made
            here when not given.
    """
    length, total, window = q.shape[2], k.shape[2], settings.neighbor_window
    if settings.group_size == 1 or total <= window:
        return _plain(q, k, v, total, rotary, scaling, softcap)
    if length == 1:
        return _decode(q, k, v, rotary, settings, scaling, softcap, grouped_keys)
    near = max(0, window - (total - length))  # queries without grouped pairs
    out = v.new_empty(len(q), length, q.shape[1], v.shape[3]).transpose(1, 2)
    far_lse = _extended(
        q[:, :, near:], k, v, rotary, settings, scaling, softcap, grouped_keys, out[:, :, near:]
    )
    if not near:
        return out, far_lse
    near_out, near_lse = _plain(q[:, :, :near], k, v, window, rotary, scaling, softcap)
    out[:, :, :near] = near_out
    return out, torch.cat([near_lse, far_lse], dim=2)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    end: int,
    rotary: RotaryLayout,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Ordinary attention of queries that stand just before position ``end``."""
    positions = torch.arange(end, device=q.device)
    q = rotary.rotate(q, positions[end - q.shape[2] :])
    k = rotary.rotate(k[:, :, :end], positions)
    return _causal(q, k, v[:, :, :end], scaling, softcap)


def _causal(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Causal attention of rotated queries that stand at the last T of the S keys."""
    past = k.shape[2] - q.shape[2]
    square = partial_attention(
        q, k[:, :, past:], v[:, :, past:], scaling=scaling, softcap=softcap, causal=True
    )
    if not past:
        return square
    before = partial_attention(q, k[:, :, :past], v[:, :, :past], scaling=scaling, softcap=softcap)
    return merge(*before, *square)


def _decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: RotaryLayout,
    settings: SelfExtend,
    scaling: float,
    softcap: float | None,
    grouped_keys: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One query: its far keys are grouped, its neighbors stand where they are."""
    total, far = k.shape[2], k.shape[2] - settings.neighbor_window
    positions = torch.arange(total, device=q.device)
    if grouped_keys is None:
        grouped_keys = torch.empty_like(k)
        grouped = settings.key_position(positions[:far])
        rotary.rotate(k[:, :, :far], grouped, out=grouped_keys[:, :, :far])
        rotary.rotate(k[:, :, far:], positions[far:], out=grouped_keys[:, :, far:])
    here = positions[-1:]
    parts = (
        partial_attention(
            rotary.rotate(q, position), grouped_keys[:, :, seen], v[:, :, seen],
            scaling=scaling, softcap=softcap,
        )
        for position, seen in (
            (settings.query_position(here), slice(0, far)),
            (here, slice(far, total)),
        )
    )  # fmt: skip
    (out, lse), neighbors = parts
    return merge(out, lse, *neighbors)


def _extended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: RotaryLayout,
    settings: SelfExtend,
    scaling: float,
    softcap: float | None,
    grouped_keys: Tensor | None,
    out: Tensor,
) -> Tensor:
    """Queries that all have grouped pairs: grouped part and neighbor band, merged into ``out``."""
    tables = _Tables.made(q, k, rotary, settings, grouped_keys is None)
    share = q.shape[1] // k.shape[1]
    step = _heads_at_once(k)
    turned = torch.empty_like(q[:, : step * share])
    made = k[:, :step, : max(tables.far, k.shape[2] - tables.start)]
    keys = torch.empty_like(made) if grouped_keys is None else None
    lses = []
    for head in range(0, k.shape[1], step):
        own, others = slice(head, head + step), slice(head * share, (head + step) * share)
        given = None if grouped_keys is None else grouped_keys[:, own]
        lses.append(
            _extended_heads(
                q[:, others], k[:, own], v[:, own], rotary, tables, scaling, softcap,
                given, keys, turned, out[:, others],
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
    """Where the queries and keys of one call stand, for all heads."""

    far: int  # keys that some query sees as grouped
    start: int  # the first key that the band touches
    skip: int  # keys of the band before the oldest neighbor of the first query
    window: int
    grouped_queries: RotaryTables
    grouped_keys: RotaryTables | None
    near: RotaryTables  # of keys ``start`` and later; the queries are the last of them

    @classmethod
    def made(
        cls, q: Tensor, k: Tensor, rotary: RotaryLayout, settings: SelfExtend, keys_too: bool
    ) -> _Tables:
        length, total, window = q.shape[2], k.shape[2], settings.neighbor_window
        far = total - window
        first = far - length + 1  # the oldest neighbor of the first query
        skip = min(first, unused_keys(q, window))
        positions = torch.arange(total, device=q.device)
        dtype = rotation_dtype(q)
        # grouped positions come again and again: far fewer angles than tokens
        angles = rotary.tables(positions[: settings.query_position(total - 1) + 1], dtype)
        queries = settings.query_position(positions[total - length :])
        keys = settings.key_position(positions[:far])
        return cls(
            far=far,
            start=first - skip,
            skip=skip,
            window=window,
            grouped_queries=RotaryTables(angles.cos[queries], angles.sin[queries]),
            grouped_keys=RotaryTables(angles.cos[keys], angles.sin[keys]) if keys_too else None,
            near=rotary.tables(positions[first - skip :], dtype),
        )


def _extended_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: RotaryLayout,
    tables: _Tables,
    scaling: float,
    softcap: float | None,
    grouped_keys: Tensor | None,
    scratch: Tensor | None,
    turned: Tensor,
    out: Tensor,
) -> Tensor:
    """Some heads of `_extended`; ``turned`` and ``scratch`` are room for queries and keys."""
    far, start, length = tables.far, tables.start, q.shape[2]
    room = None
    if grouped_keys is None:
        assert scratch is not None
        assert tables.grouped_keys is not None
        room = scratch[:, :, : k.shape[2] - start]
        grouped_keys = rotary.rotate(k[:, :, :far], tables.grouped_keys, out=scratch[:, :, :far])
    rotary.rotate(q, tables.grouped_queries, out=turned)
    grouped = _causal(turned, grouped_keys[:, :, :far], v[:, :, :far], scaling, softcap)

    # the grouped keys and queries have done their work: what was made here is written over
    neighbor_keys = rotary.rotate(k[:, :, start:], tables.near, out=room)
    here = RotaryTables(*(table[-length:] for table in tables.near))
    rotary.rotate(q, here, out=turned)
    band = band_attention(
        turned, neighbor_keys, v[:, :, start:], tables.window, tables.skip, scaling, softcap
    )
    return merge(*grouped, *band, into=out)[1]
