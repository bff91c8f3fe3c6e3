"""How much a few queries look at each key: the mass of the softmax, of many keys at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfextend_rag.attention.grouped import GroupedKeys
from selfextend_rag.attention.spec import AttentionSpec, Scoring

_KEPT = 1 << 24  # scores that are kept between the two passes over the keys
_AT_ONCE = 1 << 22  # scores made at a time
_NOTHING = -60.0  # a score so far below the highest of its block weighs nothing in float64


def attention_mass(
    q: Tensor,
    k: Tensor,
    scoring: Scoring,
    *,
    positions: Tensor,
    first_key: int = 0,
    starts: Tensor | None = None,
    bias: Tensor | None = None,
    grouped_keys: GroupedKeys | None = None,
) -> Tensor:
    """Return for each key the sum of its softmax weights over the queries, ``[H, S]``, float32.

    Memory is ``H * S`` and some blocks of scores, whatever the number of queries.

    Args:
        q: ``[H, T, D]``.
        k: ``[Hkv, S, D]``, H a multiple of Hkv.
        scoring: the layer's; an `AttentionSpec` where queries and keys come un-rotated.
        positions: ``[T]`` the queries' positions, rising; each sees keys up to its own.
        first_key: the position of the first key; 0 in an extended layer.
        starts: ``[T]`` the first position that each query sees; 0 by default.
        bias: ``[T, S]`` added to the scores, -inf where a key is not seen.
        grouped_keys: an extended layer's store of grouped, rotated keys; used if it is filled.
    """
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    heads, length, total = q.shape[0], q.shape[1], k.shape[1]
    blocks = partial(
        _blocks, q.to(compute) * scoring.scaling, k, scoring,
        positions, first_key, starts, bias, grouped_keys,
    )  # fmt: skip
    keep = heads * length * total <= _KEPT
    kept: list[_Exponentials] = []
    if scoring.sinks is None:
        lse = q.new_full((heads, length), -torch.inf, dtype=compute)
    else:
        lse = scoring.sinks.to(compute).view(-1, 1).expand(-1, length)
    for block in blocks():
        lse = torch.logaddexp(lse, block.highest + block.values.sum(-1).log())
        if keep:
            kept.append(block)
    mass = q.new_empty((heads, total), dtype=compute)
    for block in kept if keep else blocks():
        share = (block.highest - lse).exp()
        end = block.begin + block.values.shape[-1]
        mass[:, block.begin : end] = (share.unsqueeze(1) @ block.values).squeeze(1)
    return mass


class _Exponentials(NamedTuple):
    """What one block of n keys scores, as ``values * exp(highest)``."""

    begin: int
    highest: Tensor  # [H, T]
    values: Tensor  # [H, T, n]


def _blocks(
    q: Tensor,
    k: Tensor,
    scoring: Scoring,
    positions: Tensor,
    first_key: int,
    starts: Tensor | None,
    bias: Tensor | None,
    grouped_keys: GroupedKeys | None,
) -> Iterator[_Exponentials]:
    """Score so many keys at a time; the queries are scaled already."""
    earliest, total, border, products = int(positions[0]), k.shape[1], 0, None
    if isinstance(scoring, AttentionSpec):
        products = _Products(q, k, scoring, positions, grouped_keys)
        border = products.border
    step = max(64, _AT_ONCE // q[..., 0].numel())
    begins = [*range(0, border, step), *range(border, total, step)]
    for begin, end in zip(begins, [*begins[1:], total], strict=True):
        found = products.of(begin, end) if products else _multiply(q, k[:, begin:end])
        scores = scoring.capped(found)
        if bias is not None:
            scores = scores + bias[:, begin:end].to(scores.dtype)
        if starts is not None or first_key + end - 1 > earliest:
            keys = torch.arange(begin, end, device=k.device) + first_key
            unseen = keys > positions[:, None]
            if starts is not None:
                unseen |= keys < starts[:, None]
            scores.masked_fill_(unseen, -torch.inf)
        highest = scores.amax(-1).clamp_(min=torch.finfo(scores.dtype).min)
        # what would hardly be a number is none: denormals, and infinite exponents, are slow
        values = scores.sub_(highest.unsqueeze(-1)).clamp_(min=_NOTHING).exp_()
        values = F.threshold(values, math.exp(_NOTHING + 1), 0.0, inplace=True)
        yield _Exponentials(begin, highest, values)


class _Products:
    """The products of queries and keys that come un-rotated; keys before ``border`` are grouped."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        spec: AttentionSpec,
        positions: Tensor,
        grouped_keys: GroupedKeys | None,
    ) -> None:
        self.k, self.spec, self.positions = k, spec, positions
        self.near_q = spec.rotary.rotate(q[None], positions)[0]
        self.border, self.kept = 0, None
        self.far = spec.far_band(k.shape[1])
        if self.far is None:
            return
        self.border = max(0, int(positions[0]) - self.far.nearest + 1)
        self.far_q = spec.rotary.rotate(q[None], self.far.query_position(positions))[0]
        if grouped_keys is not None and grouped_keys.nbytes:
            end = k.shape[1] - self.far.nearest
            self.kept = grouped_keys.reach(k[None], end, spec)[0, :, :end]

    def of(self, begin: int, end: int) -> Tensor:
        """Return the products of all queries with the keys of one block."""
        if self.kept is not None and end <= self.border:
            return _multiply(self.far_q, self.kept[:, begin:end])
        k, keys = self.k[None, :, begin:end], torch.arange(begin, end, device=self.k.device)
        if self.far is None:
            return _multiply(self.near_q, self.spec.rotary.rotate(k, keys)[0])
        grouped = self.spec.rotary.rotate(k, self.far.key_position(keys))[0]
        far = _multiply(self.far_q, grouped)
        if end <= self.border:
            return far
        near = _multiply(self.near_q, self.spec.rotary.rotate(k, keys)[0])
        return torch.where(self.positions[:, None] - keys < self.far.nearest, near, far, out=far)


def _multiply(q: Tensor, k: Tensor) -> Tensor:
    """``[H, T, D]`` and ``[Hkv, n, D]`` to ``[H, T, n]``."""
    heads, length, _ = q.shape
    folded = q.reshape(len(k), heads // len(k) * length, q.shape[2])
    return (folded @ k.to(q.dtype).mT).view(heads, length, k.shape[1])
