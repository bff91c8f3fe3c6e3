"""Starts the kernels: their grids, their tiles, and the memory that they write in between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from selfextend_rag.attention.partial import AttentionSpec
from selfextend_rag.attention.triton.tiles import (
    INTERPRETED,
    DecodeTiles,
    PrefillTiles,
    capability_of,
    decode_tiles,
    most_rows,
    multiprocessors,
    prefill_tiles,
)
from selfextend_rag.positions import Band

_ALWAYS = 64  # rows (queries times the heads that share a kv head) that never are a prefill
_TILE = 128  # queries of a program of a prefill
_WORTH = 0.4  # of the device; rows of a decode program cost about twice what they do in a prefill
MAX_SPLITS = 128
_ALIGN = 128  # as in shared_kernels.py
_ROTATED_AT_ONCE = 32  # keys of one program; the interpreter pays for programs, not for keys
# Rotated keys held at a time. A 128 k-token prefill of 32 heads and 8 kv heads of 128 in bfloat16
# holds 2.7 GB of queries, keys, values and output; 2 % of it is 54 MB.
_SCRATCH_BYTES = 50 * 2**20
_NONE_FAR = Band(nearest=1 << 30)  # farther than any key: all are neighbors


@dataclass(frozen=True, eq=False)
class Call:
    """One call: its tensors, its spec, and where its rows are."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor  # [B, H, T, Dv]
    lse: Tensor | None  # [B, H, T]
    spec: AttentionSpec
    sinks: Tensor | None  # the spec's, contiguous
    bounds: Tensor | None
    table: Tensor  # of angles

    @property
    def far(self) -> Band:
        """The grouped keys, or where none are, a band that nothing reaches."""
        return self.spec.far_band(self.k.shape[2]) or _NONE_FAR

    @property
    def numbers(self) -> tuple[float, ...]:
        """What the attention kernels take in this order; scores are for a softmax of base 2."""
        far, rotary, softcap = self.far, self.spec.rotary, self.spec.softcap
        rotation = float(rotary.sign), float(rotary.scale)
        cap = 1.0 if softcap is None else float(softcap)
        scale = self.spec.scaling / math.log(2)
        return far.nearest, far.group_size, far.shift, *rotation, scale, cap

    @property
    def layout(self) -> dict[str, int]:
        """What all kernels that rotate are compiled for."""
        rotary = self.spec.rotary
        pairs, interleaved = len(rotary.inv_freq), rotary.pairing == "interleaved"
        return {"OFFSET": rotary.offset, "PAIRS": pairs, "INTERLEAVED": interleaved}

    @property
    def scores(self) -> dict[str, object]:
        """What the attention kernels are compiled for."""
        precision = "ieee" if self.q.dtype == torch.float32 else "tf32"
        return {"HAS_CAP": self.spec.softcap is not None, "PRECISION": precision}


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


def decode_attention(call: Call, tiles: DecodeTiles | None = None) -> None:
    """Write the attention of a few queries: as many programs as the device holds, then one join.

    Reads each key once for a block of queries and makes no copy of it. Nothing is read back from
    the device, and grid and workspace depend on shapes alone.
    """
    from selfextend_rag.attention.triton.decode_kernels import decode, join

    q, k, v = call.q, call.k, call.v
    batch, heads, length, dim = q.shape
    kv_heads, total, value_dim = k.shape[1], k.shape[2], v.shape[3]
    share = heads // kv_heads
    block_value = padded_dim(value_dim)
    wide = max(padded_dim(dim), block_value)
    rows = min(most_rows(wide, q.element_size()), padded_dim(share * length))
    blocks = -(-share * length // rows)
    tiles = tiles or decode_tiles(capability_of(q.device), wide, q.element_size(), rows)
    group = call.far.group_size
    same = group <= tiles.block_n
    step = tiles.block_n // group * group if same else tiles.block_n
    # all programs run at once, and none has fewer keys than two steps
    wanted = multiprocessors(q.device) * tiles.programs // (batch * kv_heads * blocks)
    splits = max(1, min(wanted, -(-total // (2 * step)), MAX_SPLITS))
    parts = q.new_empty((batch, heads, length, splits, value_dim), dtype=torch.float32)
    part_lse = q.new_empty((batch, heads, length, splits), dtype=torch.float32)
    pairs = len(call.spec.rotary.inv_freq)
    decode[(splits * blocks, kv_heads, batch)](
        q, k, v, parts, part_lse, call.bounds, call.table,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        share, blocks, total, length, *call.numbers,
        DIM=dim, VALUE_DIM=value_dim, BLOCK_VALUE=block_value, **call.layout,
        BLOCK_PAIRS=padded_dim(pairs), BLOCK_REST=padded_dim(max(1, dim - 2 * pairs)),
        HAS_BOUNDS=call.bounds is not None, **call.scores, ROWS=rows,
        BLOCK_N=tiles.block_n, STEP=step, SAME_ANGLES=same, STAGES=tiles.stages,
        num_warps=tiles.warps,
    )  # fmt: skip
    join[(length, heads, batch)](
        parts, part_lse, call.out, call.lse, call.sinks, call.bounds, *call.out.stride()[:3],
        heads, total, length, splits,
        VALUE_DIM=value_dim, BLOCK_VALUE=block_value, BLOCK_SPLITS=1 << (splits - 1).bit_length(),
        HAS_BOUNDS=call.bounds is not None, HAS_SINKS=call.sinks is not None,
        HAS_LSE=call.lse is not None, num_warps=4 if splits * block_value <= 8192 else 8,
    )  # fmt: skip


class Cut(NamedTuple):
    """How a prefill is cut so that rotated keys stay small."""

    units: int  # kv heads of batch rows at a time
    part: int  # queries at a time
    grouped_rows: int  # 0 where no query sees a key as grouped
    near_rows: int


def cut_for(length: int, total: int, window: int, units: int, row_bytes: int, block_m: int) -> Cut:
    """Return how to cut a prefill of ``length`` queries over ``total`` keys.

    A unit needs its keys twice: grouped ones up to the window, and as neighbors those of the
    present queries. As many units as fit `_SCRATCH_BYTES`; one that does not fit is done in two
    halves of its queries, which shrinks the second copy.
    """
    grouped_rows = _rounded(total - window) if total > window else 0

    def near_rows(queries: int) -> int:
        return min(_rounded(total), _rounded(queries + min(window, total) + _ALIGN - 1))

    fits = _SCRATCH_BYTES // ((grouped_rows + near_rows(length)) * row_bytes)
    if not fits and length > 2 * block_m:
        half = _rounded(-(-length // 2), block_m)
        return Cut(1, half, grouped_rows, near_rows(half))
    launches = -(-units // max(1, fits))
    return Cut(-(-units // launches), length, grouped_rows, near_rows(length))


def prefill_attention(call: Call, tiles: PrefillTiles | None = None) -> None:
    """Write the attention of many queries, a few kv heads at a time."""
    prefill = _Prefill(call, tiles)
    cut, length, units = prefill.cut, call.q.shape[2], len(call.k) * call.k.shape[1]
    for unit in range(0, units, cut.units):
        here = min(cut.units, units - unit)
        if cut.grouped_rows:
            prefill.rotate(prefill.grouped, here, unit, 0, neighbor=False)
        for first in range(0, length, cut.part):
            prefill.rotate(prefill.near, here, unit, first, neighbor=True)
            prefill.attend(here, unit, first, min(length, first + cut.part))


class _Prefill:
    """The scratch of one prefill, and the launches that fill and read it."""

    def __init__(self, call: Call, tiles: PrefillTiles | None) -> None:
        q, k, v = call.q, call.k, call.v
        size, capability = q.element_size(), capability_of(q.device)
        self.call = call
        self.block_dim, self.block_value = padded_dim(q.shape[3]), padded_dim(v.shape[3])
        self.tiles = tiles or prefill_tiles(capability, max(self.block_dim, self.block_value), size)
        batch, kv_heads, total, dim = k.shape
        self.cut = cut_for(
            q.shape[2], total, call.far.nearest, batch * kv_heads, self.block_dim * size,
            self.tiles.block_m,
        )  # fmt: skip
        self.grouped = k.new_empty(self.cut.units, self.cut.grouped_rows, self.block_dim)
        self.near = k.new_empty(self.cut.units, self.cut.near_rows, self.block_dim)
        self.descriptors = self._descriptors()
        interpreted = capability == INTERPRETED
        self.staged = (capability[0] >= 9 or interpreted) and size == 2 and v.shape[3] >= dim
        self.at_once = _ALIGN if interpreted else _ROTATED_AT_ONCE

    def rotate(self, scratch: Tensor, here: int, unit: int, first: int, *, neighbor: bool) -> None:
        """Rotate the keys of ``here`` units from ``unit`` on, for queries from ``first`` on."""
        from selfextend_rag.attention.triton.prefill_kernels import rotate_keys

        call, k = self.call, self.call.k
        window, group, _, sign, scale, *_ = call.numbers
        rotate_keys[(-(-scratch.shape[1] // self.at_once), here)](
            k, scratch, call.bounds, call.table, *k.stride()[:3], k.shape[1], unit,
            scratch.shape[1], k.shape[2], call.q.shape[2], first,
            window, group, sign, scale,
            DIM=k.shape[3], BLOCK_DIM=self.block_dim, **call.layout, NEIGHBOR=neighbor,
            HAS_BOUNDS=call.bounds is not None, BLOCK=self.at_once, num_warps=4,
        )  # fmt: skip

    def attend(self, here: int, unit: int, first: int, until: int) -> None:
        """Write the output of the queries from ``first`` to ``until`` of ``here`` units."""
        from selfextend_rag.attention.triton.prefill_kernels import prefill

        call, tiles = self.call, self.tiles
        q, v, out, kv_heads = call.q, call.v, call.out, call.v.shape[1]
        share = q.shape[1] // kv_heads
        described = self.descriptors[0] is not None
        prefill[(-(-(until - first) // tiles.block_m) * here * share,)](
            q, self.grouped, self.near, v, out, call.lse, call.sinks, call.bounds, call.table,
            *self.descriptors, *q.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            kv_heads, share, unit, here, self.grouped.shape[1], self.near.shape[1],
            v.shape[2], q.shape[2], first, until, *call.numbers,
            DIM=q.shape[3], BLOCK_DIM=self.block_dim,
            VALUE_DIM=v.shape[3], BLOCK_VALUE=self.block_value, **call.layout,
            HAS_BOUNDS=call.bounds is not None, **call.scores,
            HAS_SINKS=call.sinks is not None, HAS_LSE=call.lse is not None,
            DESCRIPTORS=described, EDGE_DESCRIPTORS=described and call.bounds is None,
            STAGED=self.staged, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, EDGE_N=tiles.edge_n,
            STAGES=tiles.stages, EDGE_STAGES=tiles.edge_stages, num_warps=tiles.warps,
        )  # fmt: skip

    def _descriptors(self) -> tuple[object, ...]:
        """Of grouped keys, neighbor keys and values; for main tiles, then for edges.

        None where they are not wanted, or the copy engine can't have them: it wants every row of
        the values to begin at a multiple of 16 bytes.
        """
        v, tiles = self.call.v, self.tiles
        steps = (v.data_ptr(), *(s * v.element_size() for s in v.stride()[:3]))
        if not tiles.descriptors or not self.near.numel() or any(step % 16 for step in steps):
            return (None,) * 6
        from triton.tools.tensor_descriptor import TensorDescriptor

        found: list[object] = []
        for rows in (tiles.block_n, tiles.edge_n):
            for keys in (self.grouped if self.grouped.numel() else self.near, self.near):
                flat, block = keys.view(-1, self.block_dim), [rows, self.block_dim]
                found.append(TensorDescriptor(flat, [*flat.shape], [*flat.stride()], block))
            block = [1, 1, rows, self.block_value]
            found.append(TensorDescriptor(v, [*v.shape], [*v.stride()], block))
        return tuple(found)


def padded_dim(dim: int) -> int:
    """The power of two that a dimension is padded to; the tensor cores want 16 at least."""
    return max(16, 1 << (dim - 1).bit_length())


def _rounded(rows: int, step: int = _ALIGN) -> int:
    return -(-rows // step) * step
