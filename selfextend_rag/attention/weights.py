"""How much a few queries look at each key: the weights of the softmax, of many keys at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfextend_rag.attention.grouped import GroupedKeys
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

_KEPT = 1 << 24  # scores that are kept between the two passes over the keys
_AT_ONCE = 1 << 22  # scores made at a time
_NOTHING = -60.0  # a score so far below the highest of its block weighs nothing in float64


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scoring:
    """How an attention layer scores a key.

    Args:
        scaling: factor on the scores.
        rotary, settings: of an extended layer, whose queries and keys come un-rotated; both None
            where queries and keys come as they are multiplied.
        softcap: ``softcap * tanh(score / softcap)`` before the softmax.
        sinks: ``[H]``, one more score per head that belongs to no key.
        grouped_keys: an extended layer's store of grouped, rotated keys; used if it is filled.
    """

    scaling: float
    rotary: RotaryLayout | None = None
    settings: SelfExtend | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    grouped_keys: GroupedKeys | None = None


def attention_mass(
    q: Tensor,
    k: Tensor,
    scoring: Scoring,
    *,
    positions: Tensor,
    first_key: int = 0,
    starts: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return for each key the sum of its softmax weights over the queries, ``[H, S]``, float32.

    Memory is ``H * S`` and some blocks of scores, whatever the number of queries.

    Args:
        q: ``[H, T, D]``.
        k: ``[Hkv, S, D]``, H a multiple of Hkv.
        scoring: the layer's way to score.
        positions: ``[T]`` the queries' positions, rising; each sees keys up to its own.
        first_key: the position of the first key; 0 in an extended layer.
        starts: ``[T]`` the first position that each query sees; 0 by default.
        bias: ``[T, S]`` added to the scores, -inf where a key is not seen.
    """
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    blocks = _Blocks(
        q.to(compute) * scoring.scaling, k, scoring, positions, first_key, starts, bias
    )
    heads, length, total = q.shape[0], q.shape[1], k.shape[1]
    keep = heads * length * total <= _KEPT
    kept: list[_Exponentials] = []
    if scoring.sinks is None:
        lse = q.new_full((heads, length), -torch.inf, dtype=compute)
    else:
        lse = scoring.sinks.to(compute).view(-1, 1).expand(-1, length)
    for block in blocks:
        lse = torch.logaddexp(lse, block.highest + block.values.sum(-1).log())
        if keep:
            kept.append(block)
    mass = q.new_empty((heads, total), dtype=compute)
    for block in kept if keep else blocks:
        share = (block.highest - lse).exp()
        end = block.begin + block.values.shape[-1]
        mass[:, block.begin : end] = (share.unsqueeze(1) @ block.values).squeeze(1)
    return mass


class _Exponentials(NamedTuple):
    """What one block of n keys scores, as ``values * exp(highest)``."""

    begin: int
    highest: Tensor  # [H, T]
    values: Tensor  # [H, T, n]


class _Blocks:
    """The scores of n keys at a time, of queries that are scaled already."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        scoring: Scoring,
        positions: Tensor,
        first_key: int,
        starts: Tensor | None,
        bias: Tensor | None,
    ) -> None:
        self.k, self.scoring, self.positions = k, scoring, positions
        self.first_key, self.starts, self.bias = first_key, starts, bias
        self.earliest = int(positions[0])
        rotary, settings = scoring.rotary, scoring.settings
        self.exact = self.grouped = q
        self.kept: Tensor | None = None
        self.border = 0  # keys before it are grouped for all queries
        if rotary is not None and settings is not None:
            self.border = max(0, self.earliest - settings.neighbor_window + 1)
            self.exact = rotary.rotate(q[None], positions)[0]
            self.grouped = rotary.rotate(q[None], settings.query_position(positions))[0]
            self.kept = self._kept_keys(rotary, settings)
        step, total = max(64, _AT_ONCE // q[..., 0].numel()), k.shape[1]
        self.begins = [*range(0, self.border, step), *range(self.border, total, step)]
        self.ends = [*self.begins[1:], total]

    def _kept_keys(self, rotary: RotaryLayout, settings: SelfExtend) -> Tensor | None:
        store, far = self.scoring.grouped_keys, self.k.shape[1] - settings.neighbor_window
        if store is None or not store.nbytes or far <= 0:
            return None
        return store.reach(self.k[None], far, 0, rotary, settings, (0,), False)[0, :, :far]

    def __iter__(self) -> Iterator[_Exponentials]:
        for begin, end in zip(self.begins, self.ends, strict=True):
            scores = self._products(begin, end)
            if self.scoring.softcap is not None:
                scores = self.scoring.softcap * torch.tanh(scores / self.scoring.softcap)
            if self.bias is not None:
                scores = scores + self.bias[:, begin:end].to(scores.dtype)
            if self.starts is not None or self.first_key + end - 1 > self.earliest:
                self._mask(scores, begin, end)
            highest = scores.amax(-1).clamp_(min=torch.finfo(scores.dtype).min)
            # what would hardly be a number is none: denormals, and infinite exponents, are slow
            values = scores.sub_(highest.unsqueeze(-1)).clamp_(min=_NOTHING).exp_()
            values = F.threshold(values, math.exp(_NOTHING + 1), 0.0, inplace=True)
            yield _Exponentials(begin, highest, values)

    def _mask(self, scores: Tensor, begin: int, end: int) -> None:
        keys = torch.arange(begin, end, device=self.k.device) + self.first_key
        unseen = keys > self.positions[:, None]
        if self.starts is not None:
            unseen |= keys < self.starts[:, None]
        scores.masked_fill_(unseen, -torch.inf)

    def _products(self, begin: int, end: int) -> Tensor:
        """The products of all queries with the keys of one block."""
        k = self.k[:, begin:end]
        rotary, settings = self.scoring.rotary, self.scoring.settings
        if rotary is None or settings is None:
            return _products(self.exact, k)
        if self.kept is not None and end <= self.border:
            return _products(self.grouped, self.kept[:, begin:end])
        keys = torch.arange(begin, end, device=k.device)
        far = _products(self.grouped, rotary.rotate(k[None], settings.key_position(keys))[0])
        if end <= self.border:
            return far
        near = _products(self.exact, rotary.rotate(k[None], keys)[0])
        return torch.where(
            self.positions[:, None] - keys < settings.neighbor_window, near, far, out=far
        )


def _products(q: Tensor, k: Tensor) -> Tensor:
    """``[H, T, D]`` and ``[Hkv, n, D]`` to ``[H, T, n]``."""
    heads, length, _ = q.shape
    folded = q.reshape(len(k), heads // len(k) * length, q.shape[2])
    return (folded @ k.to(q.dtype).mT).view(heads, length, k.shape[1])
