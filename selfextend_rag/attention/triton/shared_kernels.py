"""What the kernels share: angles, rotation, one step of the online softmax, bounds of a row."""

from __future__ import annotations

import triton
import triton.language as tl

ALIGN = tl.constexpr(128)  # scratch rows begin and end at multiples of the largest key tile


@triton.jit
def row_bounds(bounds, batch, tokens, HAS_BOUNDS: tl.constexpr):
    """Slots where a row begins and stops, and where its queries end; 0 and all without bounds."""
    if HAS_BOUNDS:
        start = tl.load(bounds + batch * 3)
        stop = tl.load(bounds + batch * 3 + 1)
        end = tl.load(bounds + batch * 3 + 2)
    else:
        start = tokens * 0
        stop = tokens
        end = tokens
    return start, stop, end


@triton.jit
def base_cos_sin(table, position, pair, used, PAIRS: tl.constexpr):
    """Cosines and sines ``[pairs]`` of one position, by angle addition; 1 and 0 if not ``used``.

    The table's first 256 rows are its fine part, see `angle_table`.
    """
    fine = table + (position % 256) * (2 * PAIRS) + pair
    coarse = table + (256 + position // 256) * (2 * PAIRS) + pair
    fine_cos = tl.load(fine, mask=used, other=1.0)
    fine_sin = tl.load(fine + PAIRS, mask=used, other=0.0)
    coarse_cos = tl.load(coarse, mask=used, other=1.0)
    coarse_sin = tl.load(coarse + PAIRS, mask=used, other=0.0)
    cos = coarse_cos * fine_cos - coarse_sin * fine_sin
    sin = coarse_sin * fine_cos + coarse_cos * fine_sin
    return cos, sin


@triton.jit
def rotated_rows(
    x,
    row_offset,
    row_used,
    base,
    local,
    table,
    sign,
    scale,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    OFFSET: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Rows of ``x`` rotated to ``base + local``, with ``0 <= local < 256``.

    Loaded twice: as they are, and with the two dimensions of each pair swapped. This saves any
    movement between threads, and makes every layout (which pairs, how many, from where) a matter
    of column numbers; both loads hit the same cache lines. The base is one row of angles for the
    whole tile, the local part a few rows that stay in the nearest cache.
    """
    column = tl.arange(0, BLOCK_DIM)
    inside = column - OFFSET
    rotates = (inside >= 0) & (inside < 2 * PAIRS)
    if INTERLEAVED:
        pair = inside // 2
        is_first = inside % 2 == 0
        partner = tl.where(is_first, column + 1, column - 1)
    else:
        is_first = inside < PAIRS
        pair = tl.where(is_first, inside, inside - PAIRS)
        partner = tl.where(is_first, column + PAIRS, column - PAIRS)
    here = row_used[:, None] & (column < DIM)[None, :]
    there = row_used[:, None] & rotates[None, :]
    rows = x + row_offset[:, None]
    own = tl.load(rows + column[None, :], mask=here, other=0.0).to(tl.float32)
    other = tl.load(rows + partner[None, :], mask=there, other=0.0).to(tl.float32)
    base_cos, base_sin = base_cos_sin(table, base, pair, rotates, PAIRS)
    base_cos = tl.where(rotates, base_cos * scale, base_cos)[None, :]
    base_sin = (base_sin * scale)[None, :]
    angles = table + local[:, None] * (2 * PAIRS) + pair[None, :]
    cos = tl.load(angles, mask=there, other=1.0)
    sin = tl.load(angles + PAIRS, mask=there, other=0.0)
    signs = tl.where(is_first, -sign, sign)[None, :]
    rotated = own * (base_cos * cos - base_sin * sin)
    rotated += other * signs * (base_sin * cos + base_cos * sin)
    return rotated.to(x.dtype.element_ty)


@triton.jit
def neighbor_base(first_position, WINDOW_ROWS):
    """First position kept in the neighbor scratch of queries from ``first_position`` on."""
    return tl.maximum(first_position - WINDOW_ROWS + 1, 0) // ALIGN * ALIGN


@triton.jit
def tanh(x):
    """Hyperbolic tangent to float32: a polynomial near 0, where 1 - 2 / (e + 1) cancels."""
    size = tl.abs(x)
    square = x * x
    poly = 1.57394409e-2
    poly = poly * square - 5.23025580e-2
    poly = poly * square + 1.33152470e-1
    poly = poly * square - 3.33327681e-1
    small = poly * square * x + x
    large = 1.0 - 2.0 / (tl.exp2(size * 2.8853900817779268) + 1.0)  # 2 / ln 2
    return tl.where(size < 0.55, small, tl.where(x < 0, -large, large))


@triton.jit
def capped(scores, scale, cap, PRECISION: tl.constexpr):
    """Soft-capped scores for the softmax of base 2; ``scale`` holds 1 / ln 2. Before any mask.

    In 16 bits the cancellation near 0 may stay: a weight then errs by about 1e-7 of the cap, far
    less than its rounding does, for less than half the instructions.
    """
    top = cap * 1.4426950408889634
    if PRECISION == "ieee":
        result = top * tanh(scores * (scale * 0.6931471805599453 / cap))
    else:
        result = top - 2.0 * top / (tl.exp2(scores * (2.0 * scale / cap)) + 1.0)
    return result


@triton.jit
def softmax_step(
    acc, total, peak, scores, values, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr
):
    """One tile of the online softmax in base 2; ``scores`` are -inf where masked."""
    # the maximum first: multiply and subtract are then one instruction
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
    shift = new_peak
    if MASKED:  # a row without any key so far: -inf - -inf is no number
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores * scale - shift[:, None])
    faded = tl.exp2(peak - shift)
    total = total * faded + tl.sum(weights, 1)
    acc = acc * faded[:, None]
    acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)
    return acc, total, new_peak


@triton.jit
def staged(tile, place, mask, STAGED: tl.constexpr):
    """The same tile, by way of global memory that this program alone uses.

    The tensor cores of sm_90 read a loaded operand from shared memory, but a computed one from
    registers, filled again for every tile of keys; that made ptxas serialise them (C7513).
    """
    if STAGED:
        tl.debug_barrier()  # who still reads what was there before
        tl.store(place, tile, mask=mask)
        tl.debug_barrier()
        tile = tl.load(place, mask=mask, other=0.0)
    return tile
