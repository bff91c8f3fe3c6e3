"""Keys rotated into scratch before a prefill; prefill_kernels.py says why."""

from __future__ import annotations

import triton
import triton.language as tl

from selfextend_rag.attention.triton.shared_kernels import (
    neighbor_base,
    rotated_rows,
    row_bounds,
)


@triton.jit(do_not_specialize=["unit0", "tokens", "length", "first", "window", "group"])
def rotate_keys(
    keys,
    scratch,
    bounds,
    table,
    stride_b,
    stride_h,
    stride_s,
    kv_heads,
    unit0,
    scratch_rows,
    tokens,
    length,
    first,
    window,
    group,
    sign,
    scale,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    OFFSET: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NEIGHBOR: tl.constexpr,
    HAS_BOUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write keys at their grouped positions, or at their own (``NEIGHBOR``), into scratch.

    A unit is one kv head of one batch row. Scratch ``[units, scratch_rows, BLOCK_DIM]`` begins at
    position 0, or at the first one that a query from ``first`` on has as a neighbor.
    """
    unit = tl.program_id(1)
    batch = (unit0 + unit) // kv_heads
    head = (unit0 + unit) % kv_heads
    start, stop, end = row_bounds(bounds, batch, tokens, HAS_BOUNDS)
    base = 0
    if NEIGHBOR:
        base = neighbor_base(end - length + first - start, window)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    position = base + row
    used = (position < stop - start) & (row < scratch_rows)
    divisor = group
    if NEIGHBOR:
        divisor = 1
    place = (base + tl.program_id(0) * BLOCK) // divisor
    local = position // divisor - place
    place = tl.minimum(place, stop)  # past the row's end nothing is used, nor read
    source = keys + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
    offset = (position + start).to(tl.int64) * stride_s
    turned = rotated_rows(
        source, offset, used, place, local, table, sign, scale,
        DIM, BLOCK_DIM, OFFSET, PAIRS, INTERLEAVED,
    )  # fmt: skip
    column = tl.arange(0, BLOCK_DIM)
    target = scratch + unit.to(tl.int64) * scratch_rows * BLOCK_DIM
    tl.store(target + row[:, None] * BLOCK_DIM + column[None, :], turned, mask=used[:, None])
