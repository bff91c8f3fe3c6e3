"""Decode: a few queries over many keys, split over the keys and joined by a second kernel.

Each key is read once, raw, and rotated in registers: decoding waits for memory, so the arithmetic
is hidden. Scores depend on differences of positions alone, so a key is rotated by where it is
*within its tile*: those angles (BLOCK_N / G rows for groups of G) are the same for every tile and
stay in registers. The tile's first position is taken off the queries, of some 16 rows.

The heads that share a kv head are rows of one tile, for each of the queries. A question of many
tokens is several such tiles, which read the same keys at the same time, from the cache mostly.
"""

from __future__ import annotations

import triton
import triton.language as tl

from selfextend_rag.attention.triton.shared_kernels import base_cos_sin, capped, row_bounds


@triton.jit
def _rotated_back(first, second, position, table, sign, pair, used, PAIRS: tl.constexpr):
    """Both dimensions of each pair, rotated back by one position."""
    cos, sin = base_cos_sin(table, position, pair, used, PAIRS)
    sin = sin * sign
    new_first = first * cos[None, :] + second * sin[None, :]
    new_second = second * cos[None, :] - first * sin[None, :]
    return new_first, new_second


@triton.jit
def _local_angles(local, table, sign, pair, used, PAIRS: tl.constexpr):
    """Angles of keys within their tile: ``local < 256`` are rows of the table's fine part."""
    place = table + local[:, None] * (2 * PAIRS) + pair[None, :]
    cos = tl.load(place, mask=used[None, :], other=1.0)
    sin = tl.load(place + PAIRS, mask=used[None, :], other=0.0) * sign
    return cos, sin


@triton.jit
def _scores(
    keys, n, live, key_stride, firsts, seconds, pair_used, cos, sin, q_first, q_second,
    rests, rest_used, q_rest, HAS_REST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Raw scores of one tile of raw keys, whose pairs are rotated by ``cos``, ``sin``."""
    rows = keys + n.to(tl.int64)[:, None] * key_stride
    mask = live[:, None] & pair_used[None, :]
    k_first = tl.load(rows + firsts[None, :], mask=mask, other=0.0)
    k_second = tl.load(rows + seconds[None, :], mask=mask, other=0.0)
    kind = k_first.dtype
    rotated_first = (k_first * cos - k_second * sin).to(kind)
    rotated_second = (k_second * cos + k_first * sin).to(kind)
    scores = tl.dot(q_first.to(kind), rotated_first.T, input_precision=PRECISION)
    scores = tl.dot(q_second.to(kind), rotated_second.T, scores, input_precision=PRECISION)
    if HAS_REST:
        mask = live[:, None] & rest_used[None, :]
        k_rest = tl.load(rows + rests[None, :], mask=mask, other=0.0)
        scores = tl.dot(q_rest, k_rest.T, scores, input_precision=PRECISION)
    return scores


@triton.jit
def _step(
    acc, total, peak, scores, mask, values, n, live, value_stride, column, scale, cap,
    HAS_CAP: tl.constexpr, VALUE_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the online softmax; unlike in a prefill, every tile has a mask."""
    scores = capped(scores, scale, cap, PRECISION) if HAS_CAP else scores * scale
    scores = tl.where(mask, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores - shift[:, None])
    faded = tl.exp2(peak - shift)
    rows = values + n.to(tl.int64)[:, None] * value_stride
    used = live[:, None] & (column < VALUE_DIM)[None, :]
    v = tl.load(rows + column[None, :], mask=used, other=0.0)
    acc = acc * faded[:, None]
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total * faded + tl.sum(weights, 1), new_peak


@triton.jit(do_not_specialize=["blocks", "tokens", "length", "window", "group", "shift"])
def decode(
    queries, keys, values, parts, part_lse, bounds, table,
    q_b, q_h, q_t, k_b, k_h, k_s, v_b, v_h, v_s,
    share, blocks, tokens, length, window, group, shift, sign, rotary_scale, scale, cap,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    OFFSET: tl.constexpr, PAIRS: tl.constexpr, BLOCK_PAIRS: tl.constexpr,
    BLOCK_REST: tl.constexpr, INTERLEAVED: tl.constexpr,
    HAS_BOUNDS: tl.constexpr, HAS_CAP: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr, SAME_ANGLES: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Attention of a block of queries that share a kv head, over one part of its keys.

    Writes ``parts`` ``[B, H, T, splits, Dv]``, divided by their sums, and ``part_lse`` in base 2.
    Where ``SAME_ANGLES``, grouped tiles advance by STEP keys, whole groups, at most BLOCK_N.
    """
    split, splits = tl.program_id(0) // blocks, tl.num_programs(0) // blocks
    block = tl.program_id(0) % blocks
    kv_head, kv_heads = tl.program_id(1), tl.num_programs(1)
    batch = tl.program_id(2)
    start, stop, end = row_bounds(bounds, batch, tokens, HAS_BOUNDS)

    row = block * ROWS + tl.arange(0, ROWS)
    t = row // share
    first = block * ROWS // share
    last = tl.minimum((block * ROWS + ROWS - 1) // share, length - 1)
    head = kv_head * share + row % share
    m0 = end - length - start  # the first query's position
    m = m0 + t
    wanted = t < length
    valid = wanted & (m >= 0) & (m < stop - start)

    seen = tl.maximum(tl.minimum(stop, end) - start, 0)
    grouped_end = tl.maximum(m0 + last + 1 - window, 0)  # keys that some query sees as grouped
    near_begin = tl.maximum(m0 + first - window + 1, 0)
    size = tl.cdiv(tl.cdiv(seen, splits), STEP) * STEP
    begin = split * size
    until = tl.minimum(begin + size, seen)

    # columns of each pair, and of what is not rotated
    pair = tl.arange(0, BLOCK_PAIRS)
    pair_used = pair < PAIRS
    firsts = OFFSET + 2 * pair if INTERLEAVED else OFFSET + pair
    seconds = firsts + (1 if INTERLEAVED else PAIRS)
    rest = tl.arange(0, BLOCK_REST)
    rest_used = rest < DIM - 2 * PAIRS
    rests = tl.where(rest < OFFSET, rest, rest + 2 * PAIRS)

    source = queries + batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h + t.to(tl.int64) * q_t
    q_mask = valid[:, None] & pair_used[None, :]
    raw_first = tl.load(source[:, None] + firsts[None, :], mask=q_mask, other=0.0)
    raw_second = tl.load(source[:, None] + seconds[None, :], mask=q_mask, other=0.0)
    both_scales = rotary_scale * rotary_scale  # the keys' too: they are not scaled
    raw_first = raw_first.to(tl.float32) * both_scales
    raw_second = raw_second.to(tl.float32) * both_scales
    q_rest = tl.load(
        source[:, None] + rests[None, :], mask=valid[:, None] & rest_used[None, :], other=0.0
    )

    keys += batch.to(tl.int64) * k_b + kv_head.to(tl.int64) * k_h + start.to(tl.int64) * k_s
    values += batch.to(tl.int64) * v_b + kv_head.to(tl.int64) * v_h + start.to(tl.int64) * v_s
    column = tl.arange(0, BLOCK_VALUE)
    index = tl.arange(0, BLOCK_N)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_VALUE], tl.float32)

    # forward to the query's position here, back by the tile's first key in the loop
    place = tl.where(valid & (m >= window), m // group + shift, 0)
    fine_cos, fine_sin = _local_angles(place % 256, table, sign, pair, pair_used, PAIRS)
    coarse_cos, coarse_sin = _local_angles(256 + place // 256, table, sign, pair, pair_used, PAIRS)
    cos = fine_cos * coarse_cos - fine_sin * coarse_sin
    sin = fine_sin * coarse_cos + fine_cos * coarse_sin
    far_first = raw_first * cos - raw_second * sin
    far_second = raw_second * cos + raw_first * sin
    cos, sin = _local_angles(index // group, table, sign, pair, pair_used, PAIRS)
    grouped_until = tl.minimum(until, grouped_end)
    for n0 in tl.range(begin, grouped_until, STEP, num_stages=STAGES):
        n = n0 + index
        live = (index < STEP) & (n < grouped_until)
        base = n0 // group
        if not SAME_ANGLES:
            cos, sin = _local_angles(n // group - base, table, sign, pair, pair_used, PAIRS)
        q_first, q_second = _rotated_back(
            far_first, far_second, base, table, sign, pair, pair_used, PAIRS
        )
        scores = _scores(
            keys, n, live, k_s, firsts, seconds, pair_used, cos, sin, q_first, q_second,
            rests, rest_used, q_rest, DIM > 2 * PAIRS, PRECISION,
        )  # fmt: skip
        mask = live[None, :] & (m[:, None] - n[None, :] >= window)
        acc, total, peak = _step(
            acc, total, peak, scores, mask, values, n, live, v_s, column, scale, cap,
            HAS_CAP, VALUE_DIM, PRECISION,
        )  # fmt: skip

    place = tl.where(valid, m, 0)
    fine_cos, fine_sin = _local_angles(place % 256, table, sign, pair, pair_used, PAIRS)
    coarse_cos, coarse_sin = _local_angles(256 + place // 256, table, sign, pair, pair_used, PAIRS)
    cos = fine_cos * coarse_cos - fine_sin * coarse_sin
    sin = fine_sin * coarse_cos + fine_cos * coarse_sin
    near_first = raw_first * cos - raw_second * sin
    near_second = raw_second * cos + raw_first * sin
    cos, sin = _local_angles(index, table, sign, pair, pair_used, PAIRS)
    for n0 in tl.range(tl.maximum(begin, near_begin), until, BLOCK_N, num_stages=STAGES):
        n = n0 + index
        live = n < until
        q_first, q_second = _rotated_back(
            near_first, near_second, n0, table, sign, pair, pair_used, PAIRS
        )
        scores = _scores(
            keys, n, live, k_s, firsts, seconds, pair_used, cos, sin, q_first, q_second,
            rests, rest_used, q_rest, DIM > 2 * PAIRS, PRECISION,
        )  # fmt: skip
        distance = m[:, None] - n[None, :]
        mask = live[None, :] & (distance >= 0) & (distance < window)
        acc, total, peak = _step(
            acc, total, peak, scores, mask, values, n, live, v_s, column, scale, cap,
            HAS_CAP, VALUE_DIM, PRECISION,
        )  # fmt: skip

    index = ((batch * kv_heads * share + head) * length + t) * splits + split
    lse = tl.where(total > 0, peak + tl.log2(total), float("-inf"))
    tl.store(part_lse + index, lse, mask=wanted)
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    target = parts + index.to(tl.int64)[:, None] * VALUE_DIM + column[None, :]
    tl.store(target, acc, mask=wanted[:, None] & (column < VALUE_DIM)[None, :])


@triton.jit(do_not_specialize=["tokens", "length", "splits"])
def join(
    parts, part_lse, out, lse, sinks, bounds, o_b, o_h, o_t, heads, tokens, length, splits,
    VALUE_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
    HAS_BOUNDS: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_LSE: tl.constexpr,
):  # fmt: skip
    """Join the parts of one query of one head into one softmax, sinks included."""
    t, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start, stop, end = row_bounds(bounds, batch, tokens, HAS_BOUNDS)
    m = end - length + t
    valid = (m >= start) & (m < stop)
    query = (batch * heads + head) * length + t
    split = tl.arange(0, BLOCK_SPLITS)
    used = (split < splits) & valid
    part = tl.load(part_lse + query * splits + split, mask=used, other=float("-inf"))
    peak = tl.max(part, 0)
    shift = tl.where(peak == float("-inf"), 0.0, peak)
    weights = tl.exp2(part - shift)
    total = tl.sum(weights, 0)
    if HAS_LSE:
        tl.store(lse + query, (shift + tl.log2(total)) * 0.6931471805599453)
    if HAS_SINKS:
        total += tl.exp2(tl.load(sinks + head).to(tl.float32) * 1.4426950408889634 - shift)
    column = tl.arange(0, BLOCK_VALUE)
    rows = parts + (query * splits + split).to(tl.int64)[:, None] * VALUE_DIM
    mask = used[:, None] & (column < VALUE_DIM)[None, :]
    values = tl.load(rows + column[None, :], mask=mask, other=0.0)
    result = tl.sum(values * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    place = out + batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h + t.to(tl.int64) * o_t
    tl.store(place + column, result.to(out.dtype.element_ty), mask=column < VALUE_DIM)
