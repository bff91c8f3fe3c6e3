"""SelfExtend attention in blocks: exact, on any device, memory linear in the length.

Each (query, key) pair is scored once. With keys 0..S-1 and queries p0..S-1:

* queries below W have neighbors only: ordinary causal attention;
* the grouped pairs of the others are causal too, shifted by W: query p sees keys 0..p-W;
* their neighbor pairs are a band of width W, cut in tiles of queries that share one mask.

The two parts of a query are merged by their log-sum-exp into one softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

from selfextend_rag.attention.merge import merge
from selfextend_rag.attention.partial import partial_attention
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

_BAND_TILE = 64  # queries of the band that share one mask


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
            positions; the rest is scratch space that is overwritten. Made here when not given.
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
    """One query: its neighbors are rotated to where its *grouped* position sees them.

    A key at distance d < W gets the position (grouped query position) - d. Then one query,
    rotated once, sees all keys at the relative positions of the method, in a single attention.
    """
    total, window = k.shape[2], settings.neighbor_window
    far = total - window
    if grouped_keys is None:
        grouped_keys = torch.empty_like(k)
        _rotate_grouped(k, grouped_keys, 0, far, rotary, settings)
    here = settings.query_position(total - 1)
    positions = torch.arange(here - window + 1, here + 1, device=q.device)
    rotary.rotate(k[:, :, far:], positions, out=grouped_keys[:, :, far:])
    q = rotary.rotate(q, positions[-1:])
    return partial_attention(q, grouped_keys, v, scaling=scaling, softcap=softcap)


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
    length, total, window = q.shape[2], k.shape[2], settings.neighbor_window
    far = total - window
    first = far - length + 1  # the oldest neighbor of the first query
    keys = grouped_keys
    if keys is None:
        keys = torch.empty_like(k[:, :, : max(far, total - first)])
        _rotate_grouped(k, keys, 0, far, rotary, settings)
    positions = torch.arange(total - length, total, device=q.device)
    turned = rotary.rotate(q, settings.query_position(positions))
    grouped = _causal(turned, keys[:, :, :far], v[:, :, :far], scaling, softcap)

    # the grouped keys and queries have done their work: what was made here is written over
    room = keys[:, :, : total - first] if grouped_keys is None else None
    near = torch.arange(first, total, device=q.device)
    neighbor_keys = rotary.rotate(k[:, :, first:], near, out=room)
    turned = rotary.rotate(q, positions, out=turned)
    band = _band(turned, neighbor_keys, v[:, :, first:], window, scaling, softcap)
    return merge(*grouped, *band, into=out)[1]


def _rotate_grouped(
    k: Tensor, out: Tensor, begin: int, end: int, rotary: RotaryLayout, settings: SelfExtend
) -> None:
    positions = torch.arange(begin, end, device=k.device)
    rotary.rotate(k[:, :, begin:end], settings.key_position(positions), out=out[:, :, begin:end])


def _band(
    q: Tensor, k: Tensor, v: Tensor, window: int, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Query i of T sees keys i..i+W-1 of T + W - 1."""
    length = q.shape[2]
    tile = min(_BAND_TILE, length)
    whole = length - length % tile
    rows = [
        _band_row(q[b], k[b], v[b], tile, whole, window, scaling, softcap) for b in range(len(q))
    ]
    if whole < length:
        rest = length - whole
        bias = _band_bias(rest, window, q)
        parts = partial_attention(
            q[:, :, whole:], k[:, :, whole:], v[:, :, whole:],
            scaling=scaling, softcap=softcap, bias=bias,
        )  # fmt: skip
        rows = [
            (torch.cat([out, tail], 1), torch.cat([lse, tail_lse], 1))
            for (out, lse), tail, tail_lse in zip(rows, *parts, strict=True)
        ]
    outs, lses = zip(*rows, strict=True)
    if len(rows) == 1:
        return outs[0][None], lses[0][None]
    return torch.stack(outs), torch.stack(lses)


def _band_row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tile: int,
    whole: int,
    window: int,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """The whole tiles of one batch row, folded into the batch dimension without a copy."""
    count = whole // tile
    width = tile + window - 1
    tiles_q = q[:, :whole].unflatten(1, (count, tile)).transpose(0, 1)  # [n, H, t, D]
    tiles_k, tiles_v = (
        x.as_strided(
            (count, x.shape[0], width, x.shape[2]),
            (tile * x.stride(1), x.stride(0), x.stride(1), x.stride(2)),
            x.storage_offset(),
        )
        for x in (k, v)
    )  # overlapping views, [n, Hkv, t + W - 1, D]
    out, lse = partial_attention(
        tiles_q, tiles_k, tiles_v,
        scaling=scaling, softcap=softcap, bias=_band_bias(tile, window, q),
    )  # fmt: skip
    return out.transpose(0, 1).flatten(1, 2), lse.transpose(0, 1).flatten(1, 2)


def _band_bias(tile: int, window: int, like: Tensor) -> Tensor:
    rows = torch.arange(tile, device=like.device)[:, None]
    columns = torch.arange(tile + window - 1, device=like.device)
    seen = (columns >= rows) & (columns < rows + window)
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, -torch.inf
    )
