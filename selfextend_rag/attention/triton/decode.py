"""Starts the decode kernels: as many programs as the device holds at a time, then one join."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from selfextend_rag.attention.triton.tiles import (
    capability_of,
    decode_tiles,
    most_rows,
    multiprocessors,
)

if TYPE_CHECKING:
    from selfextend_rag.attention.triton.dispatch import Call

_ALWAYS = 64  # rows (queries times the heads that share a kv head) that never are a prefill
_TILE = 128  # queries of a program of a prefill
_WORTH = 0.4  # of the device; rows of a program here cost about twice what they do there
_MAX_SPLITS = 128


def keeps_busier(q: Tensor, k: Tensor) -> bool:
    """Return whether a call's keys are better split than its queries given to a prefill's tiles.

    A prefill has a program for each 128 queries of a head: a question of 64 tokens, by 32 heads,
    leaves three quarters of a device of 132 multiprocessors idle, however many keys it sees.
    """
    batch, heads, length, _ = q.shape
    if length * (heads // k.shape[1]) <= _ALWAYS:
        return True
    if q.element_size() != 2 or 8 * length > k.shape[2]:
        return False
    return batch * heads * length <= _WORTH * _TILE * multiprocessors(q.device)


def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, call: Call, out: Tensor, lse: Tensor | None
) -> None:
    """Write the attention of a few queries into ``out`` ``[B, H, T, Dv]``; see `prefill_attention`.

    Reads each key once for a block of queries and makes no copy of it. Nothing is read back from
    the device, and grid and workspace depend on shapes alone.
    """
    from selfextend_rag.attention.triton.decode_kernels import decode, join

    batch, heads, length, dim = q.shape
    kv_heads, total, value_dim = k.shape[1], k.shape[2], v.shape[3]
    share = heads // kv_heads
    block_value = _power(value_dim)
    wide = max(_power(dim), block_value)
    rows = min(most_rows(wide, q.element_size()), _power(share * length))
    blocks = -(-share * length // rows)
    tiles = call.decode_tiles or decode_tiles(capability_of(q.device), wide, q.element_size(), rows)
    same = call.group <= tiles.block_n
    step = tiles.block_n // call.group * call.group if same else tiles.block_n
    splits = _splits(batch * kv_heads * blocks, total, 2 * step, q.device, tiles.programs)
    parts = q.new_empty((batch, heads, length, splits, value_dim), dtype=torch.float32)
    part_lse = q.new_empty((batch, heads, length, splits), dtype=torch.float32)
    pairs = call.layout["PAIRS"]
    decode[(splits * blocks, kv_heads, batch)](
        q, k, v, parts, part_lse, call.bounds, call.table,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        share, blocks, total, length, call.window, call.group, call.shift,
        call.sign, call.rotary_scale, call.scale, call.cap,
        DIM=dim, VALUE_DIM=value_dim, BLOCK_VALUE=block_value, **call.layout,
        BLOCK_PAIRS=_power(pairs), BLOCK_REST=_power(max(1, dim - 2 * pairs)),
        HAS_BOUNDS=call.bounds is not None, HAS_CAP=call.has_cap, PRECISION=call.precision,
        ROWS=rows, BLOCK_N=tiles.block_n, STEP=step, SAME_ANGLES=same,
        STAGES=tiles.stages, num_warps=tiles.warps,
    )  # fmt: skip
    join[(length, heads, batch)](
        parts, part_lse, out, lse, call.sinks, call.bounds, *out.stride()[:3],
        heads, total, length, splits,
        VALUE_DIM=value_dim, BLOCK_VALUE=block_value, BLOCK_SPLITS=1 << (splits - 1).bit_length(),
        HAS_BOUNDS=call.bounds is not None, HAS_SINKS=call.sinks is not None,
        HAS_LSE=lse is not None, num_warps=4 if splits * block_value <= 8192 else 8,
    )  # fmt: skip


def _splits(units: int, total: int, least: int, device: torch.device, programs: int) -> int:
    """Parts of the keys, so that all programs run at once and none has fewer than ``least``."""
    wanted = multiprocessors(device) * programs // units
    return max(1, min(wanted, -(-total // least), _MAX_SPLITS))


def _power(number: int) -> int:
    return max(16, 1 << (number - 1).bit_length())
