"""Attention over a paged cache of keys at *grouped* positions, for batches of uneven sequences.

One kernel serves prefills, chunks and decode steps, in any mixture: a program takes a block of
queries of one sequence, with all heads that share a kv head, so each key is loaded once for them.
Far keys are used as they are stored. Neighbors, W and a block of queries at most, are rotated on to
their own positions in registers: for 16 windows of W that is a sixteenth of the keys, and there is
neither a second copy nor a kernel before this one.

Everything that differs from step to step is read on the device: lengths, blocks, which sequences
are plain. So the launch depends on shapes alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from selfextend_rag.attention.triton.shared_kernels import (
    capped,
    rotated_rows,
    softmax_step,
    staged,
)


@triton.jit
def _sequence_of(program, starts, sequences, BLOCK_Q: tl.constexpr):
    """The sequence of a program. Sequence i has those from ``starts[i] // BLOCK_Q + i`` on."""
    low = 0
    high = sequences
    while low < high:
        middle = (low + high) // 2
        before = tl.load(starts + middle) // BLOCK_Q + middle <= program
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    return low - 1


@triton.jit
def _places(blocks, n, used, stride_b, stride_s, PAGE: tl.constexpr, MASKED: tl.constexpr):
    """Where the rows of tokens ``n`` are, in elements from the cache's beginning."""
    if MASKED:
        block = tl.load(blocks + n // PAGE, mask=used, other=0)
    else:
        block = tl.load(blocks + n // PAGE)
    return block.to(tl.int64) * stride_b + (n % PAGE).to(tl.int64) * stride_s


@triton.jit
def _rows(
    x, places, used, MASKED: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr
):  # fmt: skip
    """Rows of the cache as they are, ``[n, BLOCK_DIM]``; zeros where not ``used``."""
    column = tl.arange(0, BLOCK_DIM)
    source = x + places[:, None] + column[None, :]
    if MASKED:
        tile = tl.load(source, mask=used[:, None] & (column < DIM)[None, :], other=0.0)
    elif DIM == BLOCK_DIM:
        tile = tl.load(source)
    else:
        tile = tl.load(source, mask=(column < DIM)[None, :], other=0.0)
    return tile


_NUMBERS = ["sequences", "tokens", "share", "window", "group", "shift", "b_s"]


@triton.jit(do_not_specialize=_NUMBERS)
def paged(
    queries, keys, values, out, parts, part_lse, sinks, blocks, starts, totals, plain, table,
    q_t, q_h, k_b, k_h, k_s, v_b, v_h, v_s, o_t, o_h, b_s,
    sequences, tokens, share, window, group, shift, sign, rotary_scale, scale, cap,
    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, PAGE: tl.constexpr,
    OFFSET: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
    HAS_PLAIN: tl.constexpr, HAS_CAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    SPLIT: tl.constexpr, STAGED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EDGE_N: tl.constexpr,
    STAGES: tl.constexpr, EDGE_STAGES: tl.constexpr,
):  # fmt: skip
    """A block of queries of one sequence over the keys it sees, or over one part of them.

    In order of position: grouped only, the border (both scores, chosen by distance), neighbors
    with the diagonal. With ``SPLIT`` it writes ``parts`` ``[H, N, splits, D]``, divided by their
    sums, and ``part_lse`` in base 2, to be joined; otherwise ``out``.

    A plain sequence has its keys stored at their own positions: it is one of groups of one token,
    all of them far, and none shifted.
    """
    program = tl.program_id(0)
    kv_head = tl.program_id(1)
    split, splits = tl.program_id(2), tl.num_programs(2)
    sequence = _sequence_of(program, starts, sequences, BLOCK_Q)
    first = tl.load(starts + sequence)
    length = tl.load(starts + sequence + 1) - first
    t0 = (program - first // BLOCK_Q - sequence) * BLOCK_Q
    if t0 >= length:
        return
    if HAS_PLAIN:
        is_plain = tl.load(plain + sequence) != 0
        window = tl.where(is_plain, 0, window)
        group = tl.where(is_plain, 1, group)
        shift = tl.where(is_plain, 0, shift)

    row = tl.arange(0, BLOCK_M)
    t = t0 + row // share
    head = kv_head * share + row % share
    valid = (row < BLOCK_Q * share) & (t < length)
    # position of the sequence's first query; 0 too where a captured graph is tried on no tokens
    begin_m = tl.maximum(tl.load(totals + sequence) - length, 0)
    m0 = begin_m + t0
    m = begin_m + t
    seen = begin_m + tl.minimum(t0 + BLOCK_Q, length)

    size = tl.cdiv(tl.cdiv(seen, splits), BLOCK_N) * BLOCK_N
    begin = split * size
    until = tl.minimum(begin + size, seen)
    grouped_end = tl.maximum(m0 - window + 1, 0) // BLOCK_N * BLOCK_N
    border_end = tl.cdiv(tl.maximum(seen - window, 0), EDGE_N) * EDGE_N
    border_end = tl.maximum(border_end, grouped_end)

    blocks += sequence.to(tl.int64) * b_s
    keys += kv_head.to(tl.int64) * k_h
    values += kv_head.to(tl.int64) * v_h
    token = (first + t).to(tl.int64)
    q_rows = token * q_t + head.to(tl.int64) * q_h
    position = tl.where(valid, m, m0)
    column = tl.arange(0, BLOCK_DIM)[None, :]
    stage = out + (token * o_t + head.to(tl.int64) * o_h)[:, None] + column
    mask = valid[:, None] & (column < DIM)
    index = tl.arange(0, BLOCK_N)
    edge = tl.arange(0, EDGE_N)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DIM], tl.float32)
    step = 1.0 if HAS_CAP else scale

    far_q = rotated_rows(
        queries, q_rows, valid, m0 // group + shift, position // group - m0 // group,
        table, sign, rotary_scale, DIM, BLOCK_DIM, OFFSET, PAIRS, INTERLEAVED,
    )  # fmt: skip
    # the output's own place holds the rotated queries until the output is known
    far_q = staged(far_q, stage, mask, STAGED)
    for n0 in tl.range(begin, tl.minimum(grouped_end, until), BLOCK_N, num_stages=STAGES):
        n = n0 + index
        k = _rows(keys, _places(blocks, n, n >= 0, k_b, k_s, PAGE, False), n >= 0, False, DIM,
                  BLOCK_DIM)  # fmt: skip
        scores = tl.dot(far_q, k.T, input_precision=PRECISION)
        if HAS_CAP:
            scores = capped(scores, scale, cap, PRECISION)
        v = _rows(values, _places(blocks, n, n >= 0, v_b, v_s, PAGE, False), n >= 0, False, DIM,
                  BLOCK_DIM)  # fmt: skip
        acc, total, peak = softmax_step(acc, total, peak, scores, v, step, False, PRECISION)

    near_q = rotated_rows(
        queries, q_rows, valid, m0, position - m0,
        table, sign, rotary_scale, DIM, BLOCK_DIM, OFFSET, PAIRS, INTERLEAVED,
    )  # fmt: skip
    near_q = staged(near_q, stage, mask, STAGED)
    border = tl.maximum(begin, grouped_end)
    for n0 in tl.range(border, tl.minimum(border_end, until), EDGE_N, num_stages=EDGE_STAGES):
        n = n0 + edge
        used = n < seen
        places = _places(blocks, n, used, k_b, k_s, PAGE, True)
        k = _rows(keys, places, used, True, DIM, BLOCK_DIM)
        far_scores = tl.dot(far_q, k.T, input_precision=PRECISION)
        on = n0 - n0 // group
        k = rotated_rows(
            keys, places, used, on, n - n // group - on,
            table, sign, 1.0, DIM, BLOCK_DIM, OFFSET, PAIRS, INTERLEAVED,
        )  # fmt: skip
        near_scores = tl.dot(near_q, k.T, input_precision=PRECISION)
        distance = m[:, None] - n[None, :]
        scores = tl.where(distance >= window, far_scores, near_scores)
        if HAS_CAP:
            scores = capped(scores, scale, cap, PRECISION)
        scores = tl.where(distance >= 0, scores, float("-inf"))
        v = _rows(
            values, _places(blocks, n, used, v_b, v_s, PAGE, True), used, True, DIM, BLOCK_DIM
        )
        acc, total, peak = softmax_step(acc, total, peak, scores, v, step, True, PRECISION)

    for n0 in tl.range(tl.maximum(begin, border_end), until, EDGE_N, num_stages=EDGE_STAGES):
        n = n0 + edge
        used = n < seen
        on = n0 - n0 // group
        k = rotated_rows(
            keys, _places(blocks, n, used, k_b, k_s, PAGE, True), used, on, n - n // group - on,
            table, sign, 1.0, DIM, BLOCK_DIM, OFFSET, PAIRS, INTERLEAVED,
        )  # fmt: skip
        scores = tl.dot(near_q, k.T, input_precision=PRECISION)
        if HAS_CAP:
            scores = capped(scores, scale, cap, PRECISION)
        scores = tl.where(m[:, None] >= n[None, :], scores, float("-inf"))
        v = _rows(
            values, _places(blocks, n, used, v_b, v_s, PAGE, True), used, True, DIM, BLOCK_DIM
        )
        acc, total, peak = softmax_step(acc, total, peak, scores, v, step, True, PRECISION)

    if SPLIT:
        place = (head.to(tl.int64) * tokens + token) * splits + split
        lse = tl.where(total > 0, peak + tl.log2(total), float("-inf"))
        tl.store(part_lse + place, lse, mask=valid)
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(parts + place[:, None] * DIM + column, acc, mask=mask)
    else:
        if HAS_SINKS:
            sink = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32)
            total += tl.exp2(sink * 1.4426950408889634 - peak)
        tl.store(stage, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)
