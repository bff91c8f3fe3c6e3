"""Attention of rows that share their first keys: those are looked at once, by all rows together.

Every row has one query, behind the shared keys and some of its own. What the rows see alike is one
partial attention, with the rows as its queries; what a row sees alone is another; the parts are
merged by their log-sum-exp into one softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfextend_rag.attention.grouped import GroupedKeys
from selfextend_rag.attention.merge import add_sinks, merge
from selfextend_rag.attention.partial import partial_attention
from selfextend_rag.positions import SelfExtend
from selfextend_rag.rope import RotaryLayout

Own = Sequence[tuple[Tensor, Tensor]]
"""Keys ``[1, Hkv, S_i, D]`` and values ``[1, Hkv, S_i, Dv]`` of each row, the newest included."""


def rows_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    own: Own,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return ordinary attention of one query of each row, ``[B, H, 1, Dv]``.

    Args:
        q: ``[B, H, 1, D]``, rotated.
        k, v: ``[1, Hkv, S, D]``, rotated, and ``[1, Hkv, S, Dv]``, of the shared tokens.
        own: of each row.
        scaling, softcap, sinks: as in `self_extend_attention`.
    """
    q = q.transpose(0, 2)  # [1, H, B, D]
    alone = [
        _part(q[:, :, i : i + 1], keys, values, scaling, softcap)
        for i, (keys, values) in enumerate(own)
    ]
    return _merged(alone, [_part(q, k, v, scaling, softcap)], sinks)


def extended_rows_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    own: Own,
    *,
    rotary: RotaryLayout,
    settings: SelfExtend,
    grouped_keys: GroupedKeys,
    capacity: int,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return SelfExtend attention of one query of each row, ``[B, H, 1, Dv]``.

    Args:
        q: ``[B, H, 1, D]`` un-rotated.
        k, v: ``[1, Hkv, S, D]`` un-rotated and ``[1, Hkv, S, Dv]``, of the shared tokens.
        own: of each row, un-rotated.
        rotary, settings, scaling, softcap, sinks: as in `self_extend_attention`.
        grouped_keys: the store of the shared keys.
        capacity: tokens to make room for when it has to grow.
    """
    shared = k.shape[2]
    totals = [shared + keys.shape[2] for keys, _ in own]
    far = [max(0, total - settings.neighbor_window) for total in totals]
    # Up to `common` a shared key is far from all rows, and from `beyond` on it is near to all.
    common, beyond = min(shared, *far), min(shared, max(far))
    here = torch.tensor(totals, device=q.device) - 1
    q = q.transpose(0, 2)  # [1, H, B, D]
    far_q = rotary.rotate(q, settings.query_position(here))
    kept = grouped_keys.reach(k, common, capacity, rotary, settings, (0,), True)
    together = []
    if common:
        seen = slice(0, common)
        together.append(_part(far_q, kept[:, :, seen], v[:, :, seen], scaling, softcap))
    if beyond < shared:
        seen = slice(beyond, shared)
        near_q = rotary.rotate(q, here)
        together.append(_part(near_q, kept[:, :, seen], v[:, :, seen], scaling, softcap))
    alone = []
    for i, (keys, values) in enumerate(own):
        positions = torch.arange(common, totals[i], device=q.device)
        positions = torch.cat([positions[: beyond - common], positions[shared - common :]])
        keys = torch.cat([k[:, :, common:beyond], keys], dim=2)
        values = torch.cat([v[:, :, common:beyond], values], dim=2)
        keys = rotary.rotate(keys, _seen_from(totals[i] - 1, far[i], positions, settings))
        alone.append(_part(far_q[:, :, i : i + 1], keys, values, scaling, softcap))
    return _merged(alone, together, sinks)


def _seen_from(query: int, far: int, positions: Tensor, settings: SelfExtend) -> Tensor:
    """Return where keys stand for a query at its *grouped* position, neighbors by their distance.

    So one query, rotated once, sees far and near keys at the relative positions of the method.
    """
    near = settings.query_position(query) - (query - positions)
    return torch.where(positions < far, settings.key_position(positions), near)


def _part(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    return partial_attention(q, k, v, scaling=scaling, softcap=softcap)


def _merged(
    alone: Sequence[tuple[Tensor, Tensor]],
    together: Sequence[tuple[Tensor, Tensor]],
    sinks: Tensor | None,
) -> Tensor:
    """Return one softmax over the parts of each row and those of all rows, ``[B, H, 1, Dv]``."""
    out = torch.cat([part for part, _ in alone], dim=2)  # [1, H, B, Dv]
    lse = torch.cat([part for _, part in alone], dim=2)
    for part in together:
        out, lse = merge(out, lse, *part)
    if sinks is not None:
        out = add_sinks(out, lse, sinks)
    return out.transpose(0, 2)
