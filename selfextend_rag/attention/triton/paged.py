"""Starts the kernel of paged attention: its grid, its tiles, its workspace."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from selfextend_rag.attention.paged import Pages
from selfextend_rag.attention.partial import AttentionSpec
from selfextend_rag.attention.triton.dispatch import MAX_DIM, MAX_POSITIONS, angle_table
from selfextend_rag.attention.triton.launch import MAX_SPLITS, padded_dim
from selfextend_rag.attention.triton.tiles import (
    INTERPRETED,
    PrefillTiles,
    capability_of,
    multiprocessors,
    paged_tiles,
)

OLDEST = (8, 0)  # compute capability
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FEW_ROWS = 16  # the least that tensor cores multiply
_PROGRAMS = 2  # for each multiprocessor, where keys are split


@dataclass(frozen=True, slots=True, eq=False)
class PagedBatch:
    """The sequences of a step, as tensors on the device and what the host knows of them.

    Args:
        blocks: ``[B, n]`` int32, the blocks of each sequence in order; what is past its last one
            is not read.
        starts: ``[B + 1]`` int32, where the queries of each sequence begin, and where they end.
        totals: ``[B]`` int32, tokens of each sequence, the new ones included.
        plain: ``[B]`` int32, not 0 for sequences whose keys are stored at their own positions, and
            that get ordinary attention; None if no sequence is.
        longest_query: new tokens of the sequence with most of them, or more.
        longest: tokens of the longest sequence, or more.
    """

    blocks: Tensor
    starts: Tensor
    totals: Tensor
    plain: Tensor | None
    longest_query: int
    longest: int


def unsupported(head_size: int, dtype: torch.dtype, capability: tuple[int, int]) -> str:
    """Return why the kernel can't have such heads on such a device; empty if it can."""
    if head_size > MAX_DIM:
        return f"heads of {head_size} dimensions are larger than {MAX_DIM}"
    if dtype not in DTYPES:
        return f"keys are {dtype}, not float32, float16 or bfloat16"
    if capability != INTERPRETED and capability < OLDEST:
        return f"the GPU has compute capability {capability}, below {OLDEST}"
    return ""


def paged_batch_attention(
    q: Tensor,
    pages: Pages,
    batch: PagedBatch,
    spec: AttentionSpec,
    out: Tensor,
    *,
    tiles: PrefillTiles | None = None,
    splits: int | None = None,
) -> None:
    """Write SelfExtend attention of all sequences to ``out``.

    Nothing is read back from the device, and grid and workspace depend on the shapes and the
    numbers of the host alone.

    Args:
        q: ``[N, H, D]`` un-rotated, the sequences one after another; rows past the last one's are
            neither read nor written, or come out as anything.
        pages: as `selfextend_rag.attention.paged.paged_attention` has them, in any strides but for
            the last dimension.
        batch: the sequences.
        spec: the layer's, with a band of grouped keys.
        out: ``[N, H, D]``, of the type of q.
        tiles, splits: to be used in this call; by default they follow from the shapes.

    Raises:
        ValueError: the tensors don't fit the kernel; the message says why.
    """
    _check(q, pages, batch, out)
    tokens, heads, dim = q.shape
    kv_heads, page = pages.keys.shape[1:3]
    share = heads // kv_heads
    tiles = tiles or paged_tiles(
        capability_of(q.device), padded_dim(dim), q.element_size(),
        share * batch.longest_query <= _FEW_ROWS,
    )  # fmt: skip
    block_m = max(tiles.block_m, padded_dim(share))
    block_q = block_m // share
    sequences = len(batch.totals)
    if splits is None:
        splits = _splits(q, batch, kv_heads, block_q, tiles)
    parts = part_lse = None
    if splits > 1:
        parts = q.new_empty((heads, tokens, splits, dim), dtype=torch.float32)
        part_lse = q.new_empty((heads, tokens, splits), dtype=torch.float32)
    grid = tokens // block_q + sequences, kv_heads, splits
    with torch.cuda.device(q.device) if q.is_cuda else contextlib.nullcontext():
        _start(q, pages, batch, spec, out, parts, part_lse, grid, tiles, block_m, block_q, page)
        if parts is not None:
            _join(parts, part_lse, out, spec)


def _splits(q: Tensor, batch: PagedBatch, kv_heads: int, block_q: int, tiles: PrefillTiles) -> int:
    """Return into how many parts keys are cut, so that a small batch occupies the device."""
    blocks = len(batch.totals)
    if batch.longest_query > block_q:
        blocks += len(q) // block_q
    wanted = multiprocessors(q.device) * _PROGRAMS // (blocks * kv_heads)
    return max(1, min(wanted, -(-batch.longest // (2 * tiles.block_n)), MAX_SPLITS))


def _start(
    q: Tensor,
    pages: Pages,
    batch: PagedBatch,
    spec: AttentionSpec,
    out: Tensor,
    parts: Tensor | None,
    part_lse: Tensor | None,
    grid: tuple[int, int, int],
    tiles: PrefillTiles,
    block_m: int,
    block_q: int,
    page: int,
) -> None:
    from selfextend_rag.attention.triton.paged_kernels import paged

    keys, values, rotary = pages.keys, pages.values, spec.rotary
    far, dim = spec.own_bands[-1], q.shape[2]
    capability = capability_of(q.device)
    staged = (capability[0] >= 9 or capability == INTERPRETED) and q.element_size() == 2
    paged[grid](
        q, keys, values, out, parts, part_lse,
        None if spec.sinks is None else spec.sinks.contiguous(),
        batch.blocks, batch.starts, batch.totals, batch.plain,
        angle_table(rotary.inv_freq, q.device),
        *q.stride()[:2], *keys.stride()[:3], *values.stride()[:3], *out.stride()[:2],
        batch.blocks.stride(0), len(batch.totals), len(q), q.shape[1] // keys.shape[1],
        far.nearest, far.group_size, far.shift, float(rotary.sign), float(rotary.scale),
        spec.scaling / math.log(2), 1.0 if spec.softcap is None else float(spec.softcap),
        DIM=dim, BLOCK_DIM=padded_dim(dim), PAGE=page,
        OFFSET=rotary.offset, PAIRS=len(rotary.inv_freq),
        INTERLEAVED=rotary.pairing == "interleaved",
        HAS_PLAIN=batch.plain is not None, HAS_CAP=spec.softcap is not None,
        HAS_SINKS=spec.sinks is not None and parts is None,
        SPLIT=parts is not None, STAGED=staged and parts is None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        BLOCK_Q=block_q, BLOCK_M=block_m, BLOCK_N=tiles.block_n, EDGE_N=tiles.edge_n,
        STAGES=tiles.stages, EDGE_STAGES=tiles.edge_stages, num_warps=tiles.warps,
    )  # fmt: skip


def _join(parts: Tensor, part_lse: Tensor | None, out: Tensor, spec: AttentionSpec) -> None:
    from selfextend_rag.attention.triton.decode_kernels import join

    heads, tokens, splits, dim = parts.shape
    block = padded_dim(dim)
    sinks = None if spec.sinks is None else spec.sinks.contiguous()
    join[(tokens, heads, 1)](
        parts, part_lse, out, None, sinks, None, 0, out.stride(1), out.stride(0),
        heads, tokens, tokens, splits,
        VALUE_DIM=dim, BLOCK_VALUE=block, BLOCK_SPLITS=1 << (splits - 1).bit_length(),
        HAS_BOUNDS=False, HAS_SINKS=sinks is not None, HAS_LSE=False,
        num_warps=4 if splits * block <= 8192 else 8,
    )  # fmt: skip


def _check(q: Tensor, pages: Pages, batch: PagedBatch, out: Tensor) -> None:
    keys, values = pages.keys, pages.values
    if not q.dtype == keys.dtype == values.dtype == out.dtype:
        kinds = f"{q.dtype}, {keys.dtype}, {values.dtype} and {out.dtype}"
        raise ValueError(f"queries, keys, values and output must be of one type, not {kinds}")
    reason = unsupported(q.shape[2], q.dtype, capability_of(q.device))
    if reason:
        raise ValueError(f"paged attention can't be computed: {reason}")
    if any(x.stride(-1) != 1 for x in (q, keys, values, out)):
        raise ValueError("the head dimension must be contiguous in memory")
    if batch.longest > MAX_POSITIONS:
        raise ValueError(f"{batch.longest} tokens are more than {MAX_POSITIONS}")
    numbers = [batch.blocks, batch.starts, batch.totals]
    if any(x.dtype != torch.int32 or x.stride(-1) != 1 for x in numbers):
        raise ValueError("blocks, starts and totals must be contiguous and of int32")
