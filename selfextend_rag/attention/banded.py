"""Attention by any bands: exact, on any device, memory linear in the length.

Every band is a partial attention of each query with an interval of keys; intervals never move back
as queries move on. Queries are done in tiles that share a mask, and the parts of a query are merged
by their log-sum-exp into one softmax. SelfExtend has faster ways, see `blocked`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from selfextend_rag.attention.partial import AttentionSpec, merge, partial_attention
from selfextend_rag.maps import MapBand, Rule

_TILE = 128  # queries that share a mask


class _Part(NamedTuple):
    """What one band does for some of the queries."""

    queries: Tensor  # their indices among the queries, rising
    query_positions: Tensor
    key: Rule
    begin: Tensor  # of each query, the first of its keys in this band
    end: Tensor  # behind the last one


def log_scaled(q: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Return queries ``[..., T, D]`` times ``max(1, ln(position + 1) / ln window)``, if given.

    Source: kexue.fm/archives/9708.
    """
    if window is None:
        return q
    factor = ((positions.double() + 1).log() / math.log(window)).clamp(min=1)
    factor = factor.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    return (q * factor.unsqueeze(-1)).to(q.dtype)


def banded_attention(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """Return (out, log-sum-exp) of rows without padding, sinks left out.

    Args:
        q: ``[B, H, T, D]`` un-rotated, at the last T of S positions.
        k, v: ``[B, Hkv, S, D]`` un-rotated and ``[B, Hkv, S, Dv]``.
        spec: the layer's, of another map than SelfExtend.
    """
    rotary, (length, total) = spec.rotary, (q.shape[2], k.shape[2])
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    q = log_scaled(q, torch.arange(total - length, total, device=q.device), spec.log_scaled)
    out = v.new_zeros((*q.shape[:3], v.shape[3]), dtype=compute)
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=compute)
    parts = _parts(spec, length, total, q.device)
    rotated: dict[Rule, Tensor] = {}
    for number, part in enumerate(parts):
        if part.key not in rotated:
            rotated[part.key] = rotary.rotate(k, part.key(torch.arange(total, device=k.device)))
        queries = rotary.rotate(q[:, :, part.queries], part.query_positions)
        keys = rotated[part.key]
        for first in range(0, len(part.queries), _TILE):
            rows = slice(first, first + _TILE)
            at = part.queries[rows]
            found = _tile(queries[:, :, rows], keys, v, spec, part.begin[rows], part.end[rows])
            before = out[:, :, at], lse[:, :, at]
            out[:, :, at], lse[:, :, at] = merge(*before, found[0].to(compute), found[1])
        later = {other.key for other in parts[number + 1 :]}
        rotated = {rule: x for rule, x in rotated.items() if rule in later}
    return out.to(q.dtype), lse


def _parts(spec: AttentionSpec, length: int, total: int, device: torch.device) -> list[_Part]:
    """Return what is to be done for queries at the last positions; parts without pairs left out.

    Bands are taken from the farthest to the nearest: what later bands have is off the intervals.
    """
    positions = torch.arange(total - length, total, device=device)
    taken = torch.zeros_like(positions)
    found = []
    for band in reversed(spec.bands):
        assert isinstance(band, MapBand)
        end = torch.minimum(band.border(positions), positions + 1)
        mine = end > taken
        if band.every > 1:
            mine &= positions % band.every == band.phase
        here = mine.nonzero().squeeze(-1)
        if len(here):
            at = band.query_position(positions[here])
            found.append(_Part(here, at, band.key, taken[here], end[here]))
            taken = torch.where(mine, end, taken)
    return found


def _tile(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, begin: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """Partial attention of a few rotated queries, each with its interval of rotated keys."""
    first, last = int(begin[0]), int(end[-1])
    bias = None
    if int(begin[-1]) > first or int(end[0]) < last:
        slots = torch.arange(first, last, device=q.device)
        unseen = (slots < begin[:, None]) | (slots >= end[:, None])
        bias = torch.zeros(unseen.shape, dtype=q.dtype, device=q.device)
        bias.masked_fill_(unseen, -torch.inf)
    return partial_attention(q, k[:, :, first:last], v[:, :, first:last], spec, bias=bias)
