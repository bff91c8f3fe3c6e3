"""The neighbor part of a long prefill: a band of the scores, in tiles that share one mask."""

from __future__ import annotations

import torch
from torch import Tensor

from selfextend_rag.attention.partial import cuda_flash, cuda_flash_fits, partial_attention
from selfextend_rag.attention.spec import Scoring

_TILE = 32  # queries that share one mask
_WIDE_TILE = 256  # the same for wide heads in 16 bits: torch's kernel packs keys for so many
_WIDE_HEAD = 128
_ALIGNED = 16  # the width of a mask is a multiple of this; others cost up to a tenth more


def unused_keys(q: Tensor, window: int) -> int:
    """Return how many keys before the first neighbor make the mask of a tile well aligned."""
    return -(_tile(q) + window - 1) % _ALIGNED


def tile_of(itemsize: int, head_size: int) -> int:
    """Return how many queries at most share a mask, for numbers of so many bytes."""
    return _WIDE_TILE if itemsize == 2 and head_size >= _WIDE_HEAD else _TILE


def _tile(q: Tensor) -> int:
    return min(tile_of(q.element_size(), q.shape[3]), q.shape[2])


def band_attention(
    q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, window: int, skip: int
) -> tuple[Tensor, Tensor]:
    """Query i of T sees W keys from ``skip + i`` on, of ``skip + T + W - 1``."""
    if scoring.softcap is None and cuda_flash_fits(q, v):
        k, v = k[:, :, skip:], v[:, :, skip:]
        return cuda_flash(q, k, v, scaling=scoring.scaling, causal=True, window=window)
    length = q.shape[2]
    tile = _tile(q)
    whole = length - length % tile
    rows = [_row(q[b], k[b], v[b], scoring, tile, whole, window, skip) for b in range(len(q))]
    if whole < length:
        rest = length - whole
        bias = _bias(rest, window, skip, q)
        parts = partial_attention(
            q[:, :, whole:], k[:, :, whole:], v[:, :, whole:], scoring, bias=bias
        )
        rows = [
            (torch.cat([out, tail], 1), torch.cat([lse, tail_lse], 1))
            for (out, lse), tail, tail_lse in zip(rows, *parts, strict=True)
        ]
    outs, lses = zip(*rows, strict=True)
    if len(rows) == 1:
        return outs[0][None], lses[0][None]
    return torch.stack(outs), torch.stack(lses)


def _row(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scoring: Scoring,
    tile: int,
    whole: int,
    window: int,
    skip: int,
) -> tuple[Tensor, Tensor]:
    """The whole tiles of one batch row, folded into the batch dimension without a copy."""
    count = whole // tile
    width = skip + tile + window - 1
    tiles_q = q[:, :whole].unflatten(1, (count, tile)).transpose(0, 1)  # [n, H, t, D]
    tiles_k, tiles_v = (
        x.as_strided(
            (count, x.shape[0], width, x.shape[2]),
            (tile * x.stride(1), x.stride(0), x.stride(1), x.stride(2)),
            x.storage_offset(),
        )
        for x in (k, v)
    )  # overlapping views, [n, Hkv, t + W - 1, D]
    bias = _bias(tile, window, skip, q)
    out, lse = partial_attention(tiles_q, tiles_k, tiles_v, scoring, bias=bias)
    return out.transpose(0, 1).flatten(1, 2), lse.transpose(0, 1).flatten(1, 2)


def _bias(tile: int, window: int, skip: int, like: Tensor) -> Tensor:
    rows = torch.arange(tile, device=like.device)[:, None]
    distance = torch.arange(skip + tile + window - 1, device=like.device) - skip - rows
    unseen = (distance < 0) | (distance >= window)
    return torch.zeros(unseen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        unseen, -torch.inf
    )
