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
    tile, length = _tile(q), q.shape[2]
    whole = length - length % tile
    bias = _bias(tile, window, skip, q)
    rows = [_tiles(q[b, :, :whole], k[b], v[b], scoring, bias) for b in range(len(q))]
    out, lse = rows[0][0][None], rows[0][1][None]
    if len(rows) > 1:
        out, lse = torch.stack([row for row, _ in rows]), torch.stack([row for _, row in rows])
    if whole == length:
        return out, lse
    bias = _bias(length - whole, window, skip, q)
    tail, tail_lse = partial_attention(
        q[:, :, whole:], k[:, :, whole:], v[:, :, whole:], scoring, bias=bias
    )
    return torch.cat([out, tail], 2), torch.cat([lse, tail_lse], 2)


def _tiles(
    q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, bias: Tensor
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
    out, lse = partial_attention(tiles_q, tiles_k, tiles_v, scoring, bias=bias)
    return out.transpose(0, 1).flatten(1, 2), lse.transpose(0, 1).flatten(1, 2)


def _bias(tile: int, window: int, skip: int, like: Tensor) -> Tensor:
    rows = torch.arange(tile, device=like.device)[:, None]
    distance = torch.arange(skip + tile + window - 1, device=like.device) - skip - rows
    unseen = (distance < 0) | (distance >= window)
    return torch.zeros(unseen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        unseen, -torch.inf
    )
