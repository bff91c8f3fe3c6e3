"""Prefill: one fused attention kernel, over keys that were rotated into scratch.

Keys are not rotated in the registers of the attention kernel: for a tile of BN keys of d dimensions
that costs the general cores about 5 BN d operations, besides 6 BM BN of the softmax of BM queries,
and a way back through shared memory, where the tensor cores read it. With BM = d = 128 these cores,
the second bottleneck of any flash kernel, get 1.8 times the work, in each tile of queries that sees
the key. Rotated once, a key costs one read and two writes of 2 d bytes: about 0.2 ms for 131072
tokens of 8 heads at 4 TB/s, where the attention takes some 250 ms.

The scratch is kept small (see launch.py) by doing a few kv heads at a time. A query is used by one
program alone, so it is rotated there, first for the grouped and then for the neighbor keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from selfextend_rag.attention.triton.shared_kernels import (
    capped,
    neighbor_base,
    rotated_rows,
    row_bounds,
    softmax_step,
    staged,
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
    base = neighbor_base(end - length + first - start, window) if NEIGHBOR else 0
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    position = base + row
    used = (position < stop - start) & (row < scratch_rows)
    divisor = 1 if NEIGHBOR else group
    place = (base + tl.program_id(0) * BLOCK) // divisor
    local = position // divisor - place
    place = tl.minimum(place, stop)  # past the row's end nothing is used, nor read
    source = keys + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
    offset = (position + start).to(tl.int64) * stride_s
    rotated = rotated_rows(
        source, offset, used, place, local, table, sign, scale,
        DIM, BLOCK_DIM, OFFSET, PAIRS, INTERLEAVED,
    )  # fmt: skip
    column = tl.arange(0, BLOCK_DIM)
    target = scratch + unit.to(tl.int64) * scratch_rows * BLOCK_DIM
    tl.store(target + row[:, None] * BLOCK_DIM + column[None, :], rotated, mask=used[:, None])


@triton.jit
def _keys(
    pointer, descriptor, row, DESCRIPTORS: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr
):
    """A tile of rotated keys ``[BLOCK_N, DIM]``; scratch has space for whole tiles."""
    if DESCRIPTORS:
        tile = descriptor.load([row, 0])
    else:
        offsets = tl.arange(0, BLOCK_N)[:, None] * DIM + tl.arange(0, DIM)[None, :]
        tile = tl.load(pointer + row.to(tl.int64) * DIM + offsets)
    return tile


@triton.jit
def _values(
    pointer, descriptor, batch, head, slot, keys_left, stride_b, stride_h, stride_s,
    LAST: tl.constexpr, DESCRIPTORS: tl.constexpr, BLOCK_N: tl.constexpr, DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """A tile of values ``[BLOCK_N, BLOCK_DIM]``.

    In the ``LAST`` ones rows from ``keys_left`` on may be padding, and 0 * NaN is NaN: zeros. With
    descriptors, such rows are past the end of the tensor, which reads as zeros by itself.
    """
    if DESCRIPTORS:
        tile = descriptor.load([batch, head, slot, 0]).reshape(BLOCK_N, BLOCK_DIM)
    else:
        column = tl.arange(0, BLOCK_DIM)
        row = tl.arange(0, BLOCK_N)
        source = pointer + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
        source += slot.to(tl.int64) * stride_s
        place = source + row[:, None] * stride_s + column[None, :]
        if LAST:
            mask = (row < keys_left)[:, None] & (column < DIM)[None, :]
            tile = tl.load(place, mask=mask, other=0.0)
        elif DIM == BLOCK_DIM:
            tile = tl.load(place)
        else:
            tile = tl.load(place, mask=(column < DIM)[None, :], other=0.0)
    return tile


_NUMBERS = ["unit0", "units", "tokens", "length", "first", "until", "window", "group", "shift"]


@triton.jit(do_not_specialize=_NUMBERS)
def prefill(
    queries, grouped, near, values, out, lse, sinks, bounds, table,
    grouped_descriptor, near_descriptor, values_descriptor,
    grouped_edge, near_edge, values_edge,
    q_b, q_h, q_t, v_b, v_h, v_s, o_b, o_h, o_t,
    kv_heads, share, unit0, units, grouped_rows, near_rows,
    tokens, length, first, until, window, group, shift,
    sign, rotary_scale, scale, cap,
    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    OFFSET: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
    HAS_BOUNDS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_LSE: tl.constexpr,
    PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr, EDGE_DESCRIPTORS: tl.constexpr,
    STAGED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    EDGE_N: tl.constexpr, STAGES: tl.constexpr, EDGE_STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head over the keys it sees, in order of position.

    Grouped only, the border (both scores, chosen by distance), neighbors only, the diagonal. The
    two long parts have no masks. Positions count from the row's first token; ``m`` is a query's,
    ``n`` a key's. Tiles of keys begin at multiples of BLOCK_N, so they need not match the window.
    """
    program = tl.program_id(0)
    tiles = tl.num_programs(0) // (units * share)
    tile = tiles - 1 - program // (units * share)  # the longest first
    unit = program % (units * share) // share
    batch = (unit0 + unit) // kv_heads
    kv_head = (unit0 + unit) % kv_heads
    head = kv_head * share + program % share

    start, stop, end = row_bounds(bounds, batch, tokens, HAS_BOUNDS)
    count = stop - start
    t = first + tile * BLOCK_M + tl.arange(0, BLOCK_M)
    m0 = end - length - start + first + tile * BLOCK_M
    m = m0 + tl.arange(0, BLOCK_M)
    wanted = t < until
    valid = wanted & (m >= 0) & (m < count)

    # what the last valid query of the tile sees; nothing, where all of them are padding
    last = tl.minimum(tl.minimum(m0 + BLOCK_M, count), end - length - start + until)
    seen = tl.where(m0 < count, tl.maximum(last, 0), 0)
    grouped_end = tl.minimum(tl.maximum(m0 - window + 1, 0), seen) // BLOCK_N * BLOCK_N
    border_end = tl.cdiv(tl.maximum(seen - window, 0), EDGE_N) * EDGE_N
    border_end = tl.maximum(border_end, grouped_end)
    whole = tl.minimum(tl.maximum(m0 + 1, 0), seen) - border_end
    whole_end = border_end + tl.maximum(whole, 0) // BLOCK_N * BLOCK_N

    source = queries + batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h
    q_rows = t.to(tl.int64) * q_t
    place = tl.maximum(m, 0)
    base = tl.minimum(tl.maximum(m0, 0), stop)
    column = tl.arange(0, EDGE_N)
    grouped_row = unit * grouped_rows
    near_row = unit * near_rows - neighbor_base(end - length - start + first, window)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_VALUE], tl.float32)

    # the output's own place holds the rotated queries until the output is known
    result_rows = out + batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h
    result_rows += (t.to(tl.int64) * o_t)[:, None]
    q_column = tl.arange(0, BLOCK_DIM)[None, :]
    stage = result_rows + q_column
    stage_mask = wanted[:, None] & (q_column < DIM)

    step = 1.0 if HAS_CAP else scale
    far_q = rotated_rows(
        source, q_rows, valid, base // group + shift, place // group - base // group,
        table, sign, rotary_scale, DIM, BLOCK_DIM, OFFSET, PAIRS, INTERLEAVED,
    )  # fmt: skip
    far_q = staged(far_q, stage, stage_mask, STAGED)
    for n0 in tl.range(0, grouped_end, BLOCK_N, num_stages=STAGES):
        k = _keys(grouped, grouped_descriptor, grouped_row + n0, DESCRIPTORS, BLOCK_N, BLOCK_DIM)
        scores = tl.dot(far_q, k.T, input_precision=PRECISION)
        if HAS_CAP:
            scores = capped(scores, scale, cap, PRECISION)
        v = _values(
            values, values_descriptor, batch, kv_head, start + n0, seen - n0, v_b, v_h, v_s,
            False, DESCRIPTORS, BLOCK_N, VALUE_DIM, BLOCK_VALUE,
        )  # fmt: skip
        acc, total, peak = softmax_step(acc, total, peak, scores, v, step, False, PRECISION)

    near_q = rotated_rows(
        source, q_rows, valid, base, place - base,
        table, sign, rotary_scale, DIM, BLOCK_DIM, OFFSET, PAIRS, INTERLEAVED,
    )  # fmt: skip
    near_q = staged(near_q, stage, stage_mask, STAGED)
    for n0 in tl.range(grouped_end, border_end, EDGE_N, num_stages=EDGE_STAGES):
        k = _keys(grouped, grouped_edge, grouped_row + n0, EDGE_DESCRIPTORS, EDGE_N, BLOCK_DIM)
        far_scores = tl.dot(far_q, k.T, input_precision=PRECISION)
        k = _keys(near, near_edge, near_row + n0, EDGE_DESCRIPTORS, EDGE_N, BLOCK_DIM)
        near_scores = tl.dot(near_q, k.T, input_precision=PRECISION)
        distance = m[:, None] - (n0 + column)[None, :]
        scores = tl.where(distance >= window, far_scores, near_scores)
        if HAS_CAP:
            scores = capped(scores, scale, cap, PRECISION)
        scores = tl.where(distance >= 0, scores, float("-inf"))
        v = _values(
            values, values_edge, batch, kv_head, start + n0, seen - n0, v_b, v_h, v_s,
            True, EDGE_DESCRIPTORS, EDGE_N, VALUE_DIM, BLOCK_VALUE,
        )  # fmt: skip
        acc, total, peak = softmax_step(acc, total, peak, scores, v, step, True, PRECISION)

    for n0 in tl.range(border_end, whole_end, BLOCK_N, num_stages=STAGES):
        k = _keys(near, near_descriptor, near_row + n0, DESCRIPTORS, BLOCK_N, BLOCK_DIM)
        scores = tl.dot(near_q, k.T, input_precision=PRECISION)
        if HAS_CAP:
            scores = capped(scores, scale, cap, PRECISION)
        v = _values(
            values, values_descriptor, batch, kv_head, start + n0, seen - n0, v_b, v_h, v_s,
            False, DESCRIPTORS, BLOCK_N, VALUE_DIM, BLOCK_VALUE,
        )  # fmt: skip
        acc, total, peak = softmax_step(acc, total, peak, scores, v, step, False, PRECISION)

    for n0 in tl.range(whole_end, seen, EDGE_N, num_stages=EDGE_STAGES):
        k = _keys(near, near_edge, near_row + n0, EDGE_DESCRIPTORS, EDGE_N, BLOCK_DIM)
        scores = tl.dot(near_q, k.T, input_precision=PRECISION)
        if HAS_CAP:
            scores = capped(scores, scale, cap, PRECISION)
        scores = tl.where(m[:, None] >= (n0 + column)[None, :], scores, float("-inf"))
        v = _values(
            values, values_edge, batch, kv_head, start + n0, seen - n0, v_b, v_h, v_s,
            True, EDGE_DESCRIPTORS, EDGE_N, VALUE_DIM, BLOCK_VALUE,
        )  # fmt: skip
        acc, total, peak = softmax_step(acc, total, peak, scores, v, step, True, PRECISION)

    if HAS_LSE:
        seen_lse = tl.where(valid, (peak + tl.log2(total)) * 0.6931471805599453, float("-inf"))
        place = lse + (batch * kv_heads * share + head).to(tl.int64) * length + t
        tl.store(place, seen_lse, mask=wanted)
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        total += tl.exp2(sink - peak)
    result = tl.where(valid[:, None], acc / total[:, None], 0.0)
    column = tl.arange(0, BLOCK_VALUE)
    stored = wanted[:, None] & (column < VALUE_DIM)[None, :]
    tl.store(result_rows + column[None, :], result.to(out.dtype.element_ty), mask=stored)
