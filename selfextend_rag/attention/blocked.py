"""SelfExtend attention in blocks: exact, on any device, memory linear in the length.

The bands of other maps are handed to `banded_attention`, row by row in the same way.

Each (query, key) pair is scored once. With keys 0..S-1 and queries p0..S-1:

* queries below W have neighbors only: ordinary causal attention;
* the grouped pairs of the others are causal too, shifted by W: query p sees keys 0..p-W;
* their neighbor pairs are a band of width W, cut in tiles of queries that share one mask.

The two parts of a query are merged by their log-sum-exp into one softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

from selfextend_rag.attention.banded import banded_attention
from selfextend_rag.attention.grouped import GroupedKeys
from selfextend_rag.attention.partial import (
    AttentionSpec,
    add_sinks,
    cuda_flash,
    cuda_flash_fits,
    merge,
    partial_attention,
)
from selfextend_rag.positions import Band
from selfextend_rag.rope import RotaryTables

_SHORT = 256  # queries up to which a call is worth keeping grouped keys for
_TILE = 32  # queries that share one mask
_WIDE_TILE = 256  # the same for wide heads in 16 bits: torch's kernel packs keys for so many
_WIDE_HEAD = 128
_ALIGNED = 16  # the width of a mask is a multiple of this; others cost up to a tenth more
_WORTH_SPLITTING = 1 << 18  # numbers of a tensor from which heads are done a few at a time


def blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    *,
    key_mask: Tensor | None = None,
    grouped_keys: GroupedKeys | None = None,
    capacity: int = 0,
) -> Tensor:
    """Return SelfExtend attention, ``[B, H, T, Dv]``, zero in the rows of masked queries.

    Arguments as in `selfextend_rag.attention.self_extend_attention`. Each row attends without its
    padding, all rows together where it is the same in all.
    """
    length, total, starts, packed = q.shape[2], k.shape[2], [0], [True]
    past = total - length
    if key_mask is not None:
        starts = key_mask.int().argmax(-1).tolist()
        packed = (key_mask.sum(-1) == total - torch.tensor(starts, device=k.device)).tolist()
    kept = None
    far = spec.far_band(total - min(starts)) if spec.is_self_extend else None
    # A long prefill uses each rotated key for many queries, so it keeps none: the store is filled
    # when the first short call (a question, a decode step) asks for it.
    if grouped_keys is not None and length > _SHORT and not grouped_keys.nbytes:
        grouped_keys = None
    if grouped_keys is not None and far is not None and all(packed):
        kept = grouped_keys.reach(
            k, total - far.nearest, spec,
            starts=tuple(starts), neighbors=length == 1, capacity=capacity,
        )[:, :, :total]  # fmt: skip
    if all(packed) and len(set(starts)) == 1 and starts[0] <= past:
        begin = starts[0]
        kept = None if kept is None else kept[:, :, begin:]
        return _unpadded(q, k[:, :, begin:], v[:, :, begin:], spec, kept)
    out = v.new_zeros((len(q), length, q.shape[1], v.shape[3])).transpose(1, 2)
    for row, (start, is_packed) in enumerate(zip(starts, packed, strict=True)):
        slots: slice | Tensor = slice(start, total)  # a view of the cache, not a copy
        asked: slice | Tensor = slice(max(0, start - past), length)
        if key_mask is not None and not is_packed:
            slots = key_mask[row].nonzero().squeeze(-1)
            asked = slots[slots >= past] - past
            if not len(asked):
                continue
        one = slice(row, row + 1)
        own = None if kept is None else kept[one, :, slots]
        keys, values = k[one, :, slots], v[one, :, slots]
        out[one, :, asked] = _unpadded(q[one, :, asked], keys, values, spec, own)
    return out


def _unpadded(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, kept: Tensor | None) -> Tensor:
    """Attention of rows without padding, sinks included; queries are at the last positions.

    The first S - W of the ``kept`` keys are rotated to their grouped positions; for a lone query,
    the last W are rotated to their own. They are made here when not given.
    """
    length, total = q.shape[2], k.shape[2]
    if not spec.is_self_extend:
        out, lse = banded_attention(q, k, v, spec)
        return out if spec.sinks is None else add_sinks(out, lse, spec.sinks)
    far = spec.far_band(total)
    if far is None:
        out, lse = _plain(q, k, v, spec, total)
    elif length == 1:
        out, lse = _decode(q, k, v, spec, far, kept)
    else:
        near = max(0, far.nearest - (total - length))  # queries without grouped pairs
        out = v.new_empty(len(q), length, q.shape[1], v.shape[3]).transpose(1, 2)
        lse = _extended(q[:, :, near:], k, v, spec, far, kept, out[:, :, near:])
        if near:
            out[:, :, :near], near_lse = _plain(q[:, :, :near], k, v, spec, far.nearest)
            lse = torch.cat([near_lse, lse], dim=2)
    return out if spec.sinks is None else add_sinks(out, lse, spec.sinks)


def stored_attention(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, to_own: RotaryTables
) -> Tensor:
    """Return SelfExtend attention over keys that were stored at their grouped positions.

    Args:
        q: ``[1, H, T, D]`` un-rotated, at the last T of S positions.
        k: ``[1, Hkv, S, D]``, rotated to grouped positions and scaled as the spec's rotary says.
        v: ``[1, Hkv, S, Dv]``.
        spec: the layer's, with a band of grouped keys.
        to_own: of S positions or more, what rotates each key on to its own, without any scale.
    """
    length, total, window = q.shape[2], k.shape[2], spec.own_bands[-1].nearest
    far = spec.far_band(total)
    if far is None:
        out, lse = _plain(q, k, v, spec, total, to_own)
        return out if spec.sinks is None else add_sinks(out, lse, spec.sinks)
    near = max(0, window - (total - length))  # queries without grouped pairs
    out = v.new_empty(len(q), length, q.shape[1], v.shape[3]).transpose(1, 2)
    lse = _extended(q[:, :, near:], k, v, spec, far, k, out[:, :, near:], to_own)
    if near:
        out[:, :, :near], near_lse = _plain(q[:, :, :near], k, v, spec, window, to_own)
        lse = torch.cat([near_lse, lse], dim=2)
    return out if spec.sinks is None else add_sinks(out, lse, spec.sinks)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    end: int,
    to_own: RotaryTables | None = None,
) -> tuple[Tensor, Tensor]:
    """Ordinary attention of queries at the last positions before ``end``."""
    positions = torch.arange(end, device=q.device)
    q = spec.rotary.rotate(q, positions[end - q.shape[2] :])
    k = spec.rotary.rotate(k[:, :, :end], positions if to_own is None else to_own.at(slice(end)))
    return causal_attention(q, k, v[:, :, :end], spec)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """Causal attention of rotated queries at the last T of the S keys."""
    past = k.shape[2] - q.shape[2]
    square = partial_attention(q, k[:, :, past:], v[:, :, past:], spec, causal=True)
    if not past:
        return square
    before = partial_attention(q, k[:, :, :past], v[:, :, :past], spec)
    return merge(*before, *square)


def _decode(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, far: Band, kept: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One query: its far keys are grouped, its neighbors at their own positions."""
    rotary, total = spec.rotary, k.shape[2]
    split = total - far.nearest
    positions = torch.arange(total, device=q.device)
    if kept is None:
        at = torch.where(positions < split, far.key_position(positions), positions)
        kept = rotary.rotate(k, at)
    here = positions[-1:]
    grouped_q = rotary.rotate(q, far.query_position(here))
    before = partial_attention(grouped_q, kept[:, :, :split], v[:, :, :split], spec)
    near_q = rotary.rotate(q, here)
    near = partial_attention(near_q, kept[:, :, split:], v[:, :, split:], spec)
    return merge(*before, *near)


def _extended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec,
    far: Band,
    kept: Tensor | None,
    out: Tensor,
    to_own: RotaryTables | None = None,
) -> Tensor:
    """Queries that all have grouped pairs: grouped part and neighbor band, merged into ``out``.

    With ``to_own`` the keys come at grouped positions, and are the ``kept`` ones too.
    """
    rotary, length, total = spec.rotary, q.shape[2], k.shape[2]
    split = total - far.nearest  # keys before it are grouped for some query
    first = split - length + 1  # the oldest neighbor of the first query
    # with so many keys before the first neighbor the mask of a tile is well aligned
    skip = min(first, -(_tile(q) + far.nearest - 1) % _ALIGNED)
    near = slice(first - skip, total)
    positions = torch.arange(total, device=q.device)
    # grouped positions come again and again: far fewer angles than tokens
    angles = rotary.tables(positions[: far.query_position(total - 1) + 1], q)
    query_angles = angles.at(far.query_position(positions[total - length :]))
    made = split if kept is None else 0
    key_angles = angles.at(far.key_position(positions[:made]))
    near_angles = rotary.tables(positions[near], q)
    neighbor_angles = near_angles if to_own is None else to_own.at(near)
    heads, share = _heads_at_once(k), q.shape[1] // k.shape[1]
    queries = torch.empty_like(q[:, : heads * share])
    keys = torch.empty_like(k[:, :heads, : max(made, total - near.start)])
    lses = []
    for head in range(0, k.shape[1], heads):
        own, asked = slice(head, head + heads), slice(head * share, (head + heads) * share)
        if kept is None:
            grouped = rotary.rotate(k[:, own, :made], key_angles, out=keys[:, :, :made])
        else:
            grouped = kept[:, own, :split]
        rotary.rotate(q[:, asked], query_angles, out=queries)
        before = causal_attention(queries, grouped, v[:, own, :split], spec)

        # the grouped keys and queries have done their work: what was made here is written over
        rotary.rotate(q[:, asked], near_angles.at(slice(-length, None)), out=queries)
        neighbors = keys[:, :, : total - near.start]
        rotary.rotate(k[:, own, near], neighbor_angles, out=neighbors)
        band = _band(queries, neighbors, v[:, own, near], spec, far.nearest, skip)
        lses.append(merge(*before, *band, into=out[:, asked])[1])
    return lses[0] if len(lses) == 1 else torch.cat(lses, dim=1)


def _heads_at_once(k: Tensor) -> int:
    """Return how many kv heads to attend to at a time.

    On a CPU, as many as there are threads: what is made for a few heads stays in the cache, and
    memory that is used again needs no new pages. They divide the heads, so all calls are alike.
    """
    heads, threads = k.shape[1], torch.get_num_threads()
    if k.device.type != "cpu" or heads % threads or k[:, :threads].numel() < _WORTH_SPLITTING:
        return heads
    return threads


def tile_of(itemsize: int, head_size: int) -> int:
    """Return how many queries at most share a mask, for numbers of so many bytes."""
    return _WIDE_TILE if itemsize == 2 and head_size >= _WIDE_HEAD else _TILE


def _tile(q: Tensor) -> int:
    return min(tile_of(q.element_size(), q.shape[3]), q.shape[2])


def _band(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, window: int, skip: int
) -> tuple[Tensor, Tensor]:
    """Query i of T sees W keys from ``skip + i`` on, of ``skip + T + W - 1``."""
    if spec.softcap is None and cuda_flash_fits(q, v):
        k, v = k[:, :, skip:], v[:, :, skip:]
        return cuda_flash(q, k, v, scaling=spec.scaling, causal=True, window=window)
    tile, length = _tile(q), q.shape[2]
    whole = length - length % tile
    bias = _bias(tile, window, skip, q)
    rows = [_tiles(q[b, :, :whole], k[b], v[b], spec, bias) for b in range(len(q))]
    out, lse = rows[0][0][None], rows[0][1][None]
    if len(rows) > 1:
        out, lse = torch.stack([row for row, _ in rows]), torch.stack([row for _, row in rows])
    if whole == length:
        return out, lse
    bias = _bias(length - whole, window, skip, q)
    q, k, v = q[:, :, whole:], k[:, :, whole:], v[:, :, whole:]
    tail, tail_lse = partial_attention(q, k, v, spec, bias=bias)
    return torch.cat([out, tail], 2), torch.cat([lse, tail_lse], 2)


def _tiles(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The whole tiles of one batch row, folded into the batch dimension without a copy."""
    tile, width = bias.shape
    count = q.shape[1] // tile
    tiles_q = q.reshape(len(q), count, tile, q.shape[2]).transpose(0, 1)  # [n, H, t, D]
    tiles_k, tiles_v = (
        x.as_strided(
            (count, x.shape[0], width, x.shape[2]),
            (tile * x.stride(1), x.stride(0), x.stride(1), x.stride(2)),
            x.storage_offset(),
        )
        for x in (k, v)
    )  # overlapping views, [n, Hkv, t + W - 1, D]
    out, lse = partial_attention(tiles_q, tiles_k, tiles_v, spec, bias=bias)
    return out.transpose(0, 1).flatten(1, 2), lse.transpose(0, 1).flatten(1, 2)


def _bias(tile: int, window: int, skip: int, like: Tensor) -> Tensor:
    rows = torch.arange(tile, device=like.device)[:, None]
    distance = torch.arange(skip + tile + window - 1, device=like.device) - skip - rows
    unseen = (distance < 0) | (distance >= window)
    bias = torch.zeros(unseen.shape, dtype=like.dtype, device=like.device)
    return bias.masked_fill_(unseen, -torch.inf)
