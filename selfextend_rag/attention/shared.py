"""Attention of rows that share their first keys: all rows look at those together, in one pass.

Every row has one query, after the shared keys and some of its own. What the rows see alike is one
partial attention, with the rows as its queries; what a row sees alone is another; the parts are
merged by their log-sum-exp into one softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfextend_rag.attention.grouped import GroupedKeys
from selfextend_rag.attention.partial import (
    AttentionSpec,
    Scoring,
    add_sinks,
    merge,
    partial_attention,
)
from selfextend_rag.positions import Band

Pair = tuple[Tensor, Tensor]
Own = Sequence[Pair]
"""Keys ``[1, Hkv, S_i, D]`` and values ``[1, Hkv, S_i, Dv]`` of each row, the newest included."""


def rows_attention(q: Tensor, k: Tensor, v: Tensor, own: Own, scoring: Scoring) -> Tensor:
    """Return ordinary attention of one query of each row, ``[B, H, 1, Dv]``.

    Args:
        q: ``[B, H, 1, D]``, rotated.
        k, v: ``[1, Hkv, S, D]``, rotated, and ``[1, Hkv, S, Dv]``, of the shared tokens.
    """
    q = q.transpose(0, 2)  # [1, H, B, D]
    alone = [
        partial_attention(q[:, :, i : i + 1], keys, values, scoring)
        for i, (keys, values) in enumerate(own)
    ]
    return _merged(alone, [partial_attention(q, k, v, scoring)], scoring.sinks)


def extended_rows_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    own: Own,
    spec: AttentionSpec,
    *,
    grouped_keys: GroupedKeys,
    capacity: int,
) -> Tensor:
    """Return SelfExtend attention of one query of each row, ``[B, H, 1, Dv]``.

    Args:
        q: ``[B, H, 1, D]`` un-rotated.
        k, v: ``[1, Hkv, S, D]`` un-rotated and ``[1, Hkv, S, Dv]``, of the shared tokens.
        own: un-rotated.
        spec: the layer's, with a band of grouped keys.
        grouped_keys: of the shared keys, with space for ``capacity`` tokens when it has to grow.
    """
    band, shared = spec.own_bands[-1], k.shape[2]
    totals = [shared + keys.shape[2] for keys, _ in own]
    far = [max(0, total - band.nearest) for total in totals]
    # Up to `common` a shared key is far from all rows, and from `beyond` on it is near to all.
    common, beyond = min(shared, *far), min(shared, max(far))
    here = torch.tensor(totals, device=q.device) - 1
    q = q.transpose(0, 2)  # [1, H, B, D]
    far_q = spec.rotary.rotate(q, band.query_position(here))
    kept = grouped_keys.reach(k, common, spec, neighbors=True, capacity=capacity)
    together = []
    if common:
        together.append(partial_attention(far_q, kept[:, :, :common], v[:, :, :common], spec))
    if beyond < shared:
        near_q, seen = spec.rotary.rotate(q, here), slice(beyond, shared)
        together.append(partial_attention(near_q, kept[:, :, seen], v[:, :, seen], spec))
    alone = []
    for i, (keys, values) in enumerate(own):
        positions = torch.arange(common, totals[i], device=q.device)
        positions = torch.cat([positions[: beyond - common], positions[shared - common :]])
        keys = torch.cat([k[:, :, common:beyond], keys], dim=2)
        values = torch.cat([v[:, :, common:beyond], values], dim=2)
        keys = spec.rotary.rotate(keys, _as_grouped(totals[i] - 1, far[i], positions, band))
        alone.append(partial_attention(far_q[:, :, i : i + 1], keys, values, spec))
    return _merged(alone, together, spec.sinks)


def _as_grouped(query: int, far: int, positions: Tensor, band: Band) -> Tensor:
    """Return the positions of keys for a query at its *grouped* one, neighbors by their distance.

    So one query, rotated once, sees far and near keys at the relative positions of the method.
    """
    near = band.query_position(query) - (query - positions)
    return torch.where(positions < far, band.key_position(positions), near)


def _merged(alone: Sequence[Pair], together: Sequence[Pair], sinks: Tensor | None) -> Tensor:
    """Return one softmax over the parts of each row and those of all rows, ``[B, H, 1, Dv]``."""
    out = torch.cat([part for part, _ in alone], dim=2)  # [1, H, B, Dv]
    lse = torch.cat([part for _, part in alone], dim=2)
    for part in together:
        out, lse = merge(out, lse, *part)
    if sinks is not None:
        out = add_sinks(out, lse, sinks)
    return out.transpose(0, 2)
