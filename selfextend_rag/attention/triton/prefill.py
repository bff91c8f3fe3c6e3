"""Starts the prefill kernels: a few kv heads at a time, so that rotated keys need little memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from selfextend_rag.attention.triton.tiles import (
    INTERPRETED,
    PrefillTiles,
    capability_of,
    prefill_tiles,
)

if TYPE_CHECKING:
    from selfextend_rag.attention.triton.dispatch import Call

_ALIGN = 128  # as in shared_kernels.py
_ROTATED_AT_ONCE = 32  # keys of one program; the interpreter pays for programs, not for keys
# Rotated keys held at a time. A 128 k-token prefill of 32 heads and 8 kv heads of 128 in bfloat16
# holds 2.7 GB of queries, keys, values and output; 2 % of it is 54 MB.
_SCRATCH_BYTES = 50 * 2**20


class _Scratch(NamedTuple):
    """How a prefill is cut so that rotated keys stay small."""

    units: int  # kv heads of batch rows at a time
    parts: int  # parts of the queries, one after the other
    part: int  # queries of a part
    grouped_rows: int  # 0 where no query sees a key as grouped
    near_rows: int


def scratch_for(
    length: int, total: int, window: int, units: int, row_bytes: int, block_m: int
) -> _Scratch:
    """Return how to cut a prefill of ``length`` queries over ``total`` keys.

    A unit needs its keys twice: grouped ones up to the window, and as neighbors those of the
    present queries. As many units as fit `_SCRATCH_BYTES`; one that does not fit is done in two
    halves of its queries, which shrinks the second copy.
    """
    grouped_rows = _rounded(total - window) if total > window else 0
    near_rows = min(_rounded(total), _rounded(length + min(window, total) + _ALIGN - 1))
    fits = _SCRATCH_BYTES // ((grouped_rows + near_rows) * row_bytes)
    parts = 1
    if not fits and length > 2 * block_m:
        parts, fits = 2, 1
        half = _rounded_to(-(-length // 2), block_m)
        near_rows = min(near_rows, _rounded(half + min(window, total) + _ALIGN - 1))
        return _Scratch(1, parts, half, grouped_rows, near_rows)
    launches = -(-units // max(1, fits))
    return _Scratch(-(-units // launches), parts, length, grouped_rows, near_rows)


def prefill_attention(
    q: Tensor, k: Tensor, v: Tensor, call: Call, out: Tensor, lse: Tensor | None
) -> None:
    """Write the attention of ``q`` into ``out`` ``[B, H, T, Dv]``, its log-sum-exp into ``lse``."""
    from selfextend_rag.attention.triton.rotate_kernels import rotate_keys

    block_dim, block_value = _power(q.shape[3]), _power(v.shape[3])
    capability = capability_of(q.device)
    tiles = call.prefill_tiles or prefill_tiles(
        capability, max(block_dim, block_value), q.element_size()
    )
    batch, kv_heads, total, dim = k.shape
    length, units = q.shape[2], batch * kv_heads
    cut = scratch_for(
        length, total, call.window, units, block_dim * k.element_size(), tiles.block_m
    )
    grouped = k.new_empty(cut.units, cut.grouped_rows, block_dim)
    near = k.new_empty(cut.units, cut.near_rows, block_dim)
    loads = _Loads.made(grouped, near, v, tiles, block_value)
    staged = capability[0] >= 9 or capability == INTERPRETED
    staged = staged and q.element_size() == 2 and v.shape[3] >= dim

    at_once = _ALIGN if capability == INTERPRETED else _ROTATED_AT_ONCE

    def rotate(scratch: Tensor, here: int, unit: int, first: int, neighbor: bool) -> None:
        grid = (-(-scratch.shape[1] // at_once), here)
        rotate_keys[grid](
            k, scratch, call.bounds, call.table, *k.stride()[:3], kv_heads, unit,
            scratch.shape[1], total, length, first, call.window, call.group,
            call.sign, call.rotary_scale,
            DIM=dim, BLOCK_DIM=block_dim, **call.layout, NEIGHBOR=neighbor,
            HAS_BOUNDS=call.bounds is not None, BLOCK=at_once, num_warps=4,
        )  # fmt: skip

    for unit in range(0, units, cut.units):
        here = min(cut.units, units - unit)
        if cut.grouped_rows:
            rotate(grouped, here, unit, 0, neighbor=False)
        for first in range(0, length, cut.part):
            rotate(near, here, unit, first, neighbor=True)
            until = min(length, first + cut.part)
            _attend(q, v, grouped, near, out, lse, call, tiles, loads, staged,
                    (unit, here, first, until), total, dim, block_dim, block_value)  # fmt: skip


def _attend(
    q: Tensor,
    v: Tensor,
    grouped: Tensor,
    near: Tensor,
    out: Tensor,
    lse: Tensor | None,
    call: Call,
    tiles: PrefillTiles,
    loads: _Loads,
    staged: bool,
    place: tuple[int, int, int, int],
    total: int,
    dim: int,
    block_dim: int,
    block_value: int,
) -> None:
    from selfextend_rag.attention.triton.prefill_kernels import prefill

    unit, here, first, until = place
    share = q.shape[1] // v.shape[1]
    programs = -(-(until - first) // tiles.block_m) * here * share
    prefill[(programs,)](
        q, grouped, near, v, out, lse, call.sinks, call.bounds, call.table, *loads.descriptors,
        *q.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        v.shape[1], share, unit, here, grouped.shape[1], near.shape[1],
        total, q.shape[2], first, until, call.window, call.group, call.shift,
        call.sign, call.rotary_scale, call.scale, call.cap,
        DIM=dim, BLOCK_DIM=block_dim, VALUE_DIM=v.shape[3], BLOCK_VALUE=block_value,
        **call.layout, HAS_BOUNDS=call.bounds is not None, HAS_CAP=call.has_cap,
        HAS_SINKS=call.sinks is not None, HAS_LSE=lse is not None, PRECISION=call.precision,
        DESCRIPTORS=loads.used, EDGE_DESCRIPTORS=loads.used and call.bounds is None,
        STAGED=staged, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, EDGE_N=tiles.edge_n,
        STAGES=tiles.stages, EDGE_STAGES=tiles.edge_stages, num_warps=tiles.warps,
    )  # fmt: skip


class _Loads(NamedTuple):
    """Tensor descriptors of grouped keys, neighbor keys and values; main tiles, then edges."""

    used: bool
    descriptors: tuple[Any, ...]

    @classmethod
    def made(
        cls, grouped: Tensor, near: Tensor, v: Tensor, tiles: PrefillTiles, block_value: int
    ) -> _Loads:
        """Descriptors where they are wanted and the values' memory is aligned for them."""
        if not (tiles.descriptors and _aligned(v) and near.numel()):
            return cls(False, (None,) * 6)
        from triton.tools.tensor_descriptor import TensorDescriptor

        found: list[Any] = []
        for rows in (tiles.block_n, tiles.edge_n):
            for keys in (grouped if grouped.numel() else near, near):
                flat = keys.view(-1, keys.shape[2])
                found.append(
                    TensorDescriptor(
                        flat, list(flat.shape), list(flat.stride()), [rows, flat.shape[1]]
                    )
                )
            found.append(
                TensorDescriptor(v, list(v.shape), list(v.stride()), [1, 1, rows, block_value])
            )
        return cls(True, tuple(found))


def _aligned(x: Tensor) -> bool:
    """Whether every row begins at a multiple of 16 bytes, as the copy engine wants."""
    return x.data_ptr() % 16 == 0 and all(s * x.element_size() % 16 == 0 for s in x.stride()[:3])


def _power(dim: int) -> int:
    """The power of two that a head dimension is padded to; the tensor cores want 16 at least."""
    return max(16, 1 << (dim - 1).bit_length())


def _rounded(rows: int) -> int:
    return _rounded_to(rows, _ALIGN)


def _rounded_to(rows: int, step: int) -> int:
    return -(-rows // step) * step
