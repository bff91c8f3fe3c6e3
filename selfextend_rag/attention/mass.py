"""How much a few queries look at each key: the mass of the softmax, of many keys at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfextend_rag.attention.banded import log_scaled
from selfextend_rag.attention.grouped import GroupedKeys
from selfextend_rag.attention.partial import AttentionSpec, Scoring
from selfextend_rag.positions import Band

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
    scaled = q.to(compute) * scoring.scaling
    if isinstance(scoring, AttentionSpec) and not scoring.is_self_extend:
        scores: _Scores = _BandScores(scaled, k, scoring, positions)
    else:
        scores = _Scores(scaled, k, scoring, positions, grouped_keys)
    seen = (first_key, starts, bias)
    keep = heads * length * total <= _KEPT
    kept: list[_Exponentials] = []
    if scoring.sinks is None:
        lse = q.new_full((heads, length), -torch.inf, dtype=compute)
    else:
        lse = scoring.sinks.to(compute).view(-1, 1).expand(-1, length)
    for block in scores.blocks(*seen):
        lse = torch.logaddexp(lse, block.highest + block.values.sum(-1).log())
        if keep:
            kept.append(block)
    mass = q.new_empty((heads, total), dtype=compute)
    for block in kept if keep else scores.blocks(*seen):
        share = (block.highest - lse).exp()
        end = block.begin + block.values.shape[-1]
        mass[:, block.begin : end] = (share.unsqueeze(1) @ block.values).squeeze(1)
    return mass


class _Exponentials(NamedTuple):
    """What one block of n keys scores, as ``values * exp(highest)``."""

    begin: int
    highest: Tensor  # [H, T]
    values: Tensor  # [H, T, n]


class _Scores:
    """The scores of some queries, scaled already, for blocks of keys."""

    def __init__(
        self, q: Tensor, k: Tensor, scoring: Scoring, positions: Tensor, store: GroupedKeys | None
    ) -> None:
        self.k, self.scoring, self.positions = k, scoring, positions
        self.earliest, self.latest = positions[[0, -1]].tolist()
        self.step = max(64, _AT_ONCE // q[..., 0].numel())
        self.rotary, self.bands, self.kept = None, [(Band(), q)], None
        if isinstance(scoring, AttentionSpec):
            self.rotary = scoring.rotary
            self.bands = [
                (band, self.rotary.rotate(q[None], band.query_position(positions))[0])
                for band in scoring.own_bands
            ]
            end = k.shape[1] - scoring.own_bands[-1].nearest
            if store is not None and store.nbytes and end > 0:
                self.kept = store.reach(k[None], end, scoring)[0, :, :end]

    @property
    def _farthest(self) -> int:
        return self.bands[-1][0].nearest

    def blocks(
        self, first_key: int, starts: Tensor | None, bias: Tensor | None
    ) -> Iterator[_Exponentials]:
        """Yield blocks of all keys; one begins where the last band ends for a query."""
        total = self.k.shape[1]
        border = min(total, max(0, self.earliest - self._farthest + 1))
        begins = [*range(0, border, self.step), *range(border, total, self.step)]
        for begin, end in zip(begins, [*begins[1:], total], strict=True):
            scores = self._unmasked(begin, end)
            if bias is not None:
                scores = scores + bias[:, begin:end].to(scores.dtype)
            if starts is not None or first_key + end - 1 > self.earliest:
                keys = torch.arange(begin, end, device=scores.device) + first_key
                unseen = keys > self.positions[:, None]
                if starts is not None:
                    unseen |= keys < starts[:, None]
                scores.masked_fill_(unseen, -torch.inf)
            highest = scores.amax(-1).clamp_(min=torch.finfo(scores.dtype).min)
            # what would hardly be a number is none: denormals, and infinite exponents, are slow
            values = scores.sub_(highest.unsqueeze(-1)).clamp_(min=_NOTHING).exp_()
            values = F.threshold(values, math.exp(_NOTHING + 1), 0.0, inplace=True)
            yield _Exponentials(begin, highest, values)

    def _unmasked(self, begin: int, end: int) -> Tensor:
        """Return the scores ``[H, T, n]`` of all queries with the keys of one block."""
        at = torch.arange(begin, end, device=self.k.device)
        scores, limit = None, 0
        for band, q in reversed(self.bands):
            if max(0, self.latest - begin) < band.nearest:
                continue  # no pair is that far apart
            all_pairs = self.earliest - end + 1 >= band.nearest
            keys = self.k[:, begin:end]
            if all_pairs and self.kept is not None and band is self.bands[-1][0]:
                keys = self.kept[:, begin:end]
            elif self.rotary is not None:
                keys = self.rotary.rotate(keys[None], band.key_position(at))[0]
            # [Hkv, H / Hkv * T, D] by [Hkv, n, D]
            found = q.reshape(len(keys), -1, q.shape[2]) @ keys.to(q.dtype).mT
            found = found.view(*q.shape[:2], -1)
            if scores is not None:
                torch.where(self.positions[:, None] - at < limit, found, scores, out=found)
            scores, limit = found, band.nearest
            if all_pairs:
                break
        assert scores is not None
        return self.scoring.capped(scores)


class _BandScores(_Scores):
    """The same under another map than SelfExtend: each band that has a pair in a block is made."""

    def __init__(self, q: Tensor, k: Tensor, spec: AttentionSpec, positions: Tensor) -> None:
        q = log_scaled(q, positions, spec.log_scaled)
        super().__init__(q, k, Scoring(scaling=1.0, softcap=spec.softcap), positions, None)
        self._q, self._spec = q, spec

    @property
    def _farthest(self) -> int:
        return 0

    def _unmasked(self, begin: int, end: int) -> Tensor:
        at, rotary = torch.arange(begin, end, device=self.k.device), self._spec.rotary
        scores = self._q.new_zeros((*self._q.shape[:2], end - begin))
        for band in self._spec.bands:
            covered = band.covers(self.positions[:, None], at)
            if not bool(covered.any()):
                continue
            q = rotary.rotate(self._q[None], band.query_position(self.positions))[0]
            keys = rotary.rotate(self.k[None, :, begin:end], band.key_position(at))[0].to(q.dtype)
            found = (q.reshape(len(keys), -1, q.shape[2]) @ keys.mT).view(*q.shape[:2], -1)
            scores = torch.where(covered, found, scores)
        return self.scoring.capped(scores)
