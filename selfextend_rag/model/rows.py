"""Attention of a batch whose rows share most of their keys.

On a CPU all rows look at the shared keys together. Elsewhere, and where a layer asks for more than
that knows, each row attends by itself, as it would alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from selfextend_rag.attention import AttentionSpec
from selfextend_rag.attention.shared import extended_rows_attention, rows_attention
from selfextend_rag.cache import RowsLayer
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.model.hooks import AttentionCall

_UNDERSTOOD = ("scaling", "softcap", "s_aux")

Attend = Callable[[AttentionCall], tuple[Tensor, Tensor | None]]


def attend_by_rows(call: AttentionCall, rows: RowsLayer, alone: Attend) -> tuple[Tensor, None]:
    """Return the attention of one token of each row, ``[B, 1, H, Dv]``.

    A single query sees all that its row keeps, so no mask is needed; one that would hide anything
    is refused. ``alone`` attends as a row does by itself.

    Raises:
        UnsupportedModelError: the model asks for more than this.
    """
    name, query = type(call.module).__name__, call.query
    if query.shape[2] != 1 or len(query) != len(rows):
        raise UnsupportedModelError(f"{name} asks for other queries than one token of each row")
    if call.mask is not None and not _hides_nothing(call.mask):
        raise UnsupportedModelError(f"{name} hides keys that its cache keeps")
    for key, value in call.arguments.items():
        if isinstance(value, Tensor) and key not in ("s_aux", "position_ids"):
            raise UnsupportedModelError(f"{name} attends by {key!r}, which may differ by row")
    arguments = {key: value for key, value in call.arguments.items() if key != "position_ids"}
    call = replace(call, arguments=arguments, mask=None, layer=rows.shared)
    if _fits_together(rows, call):
        return _together(rows, call).transpose(1, 2).contiguous(), None
    outs = []
    for i in range(len(rows)):
        with rows.row(i) as (keys, values):
            out, _ = alone(replace(call, query=query[i : i + 1], key=keys, value=values))
            outs.append(out)
    return torch.cat(outs), None


def _hides_nothing(mask: object) -> bool:
    if not isinstance(mask, Tensor):
        return False
    return bool(mask.all() if mask.dtype == torch.bool else (mask == 0).all())


def _fits_together(rows: RowsLayer, call: AttentionCall) -> bool:
    if rows.shared is None or rows.shared.keys is None or call.query.device.type != "cpu":
        return False
    if isinstance(call.scoring, AttentionSpec) and (
        call.impl not in ("auto", "blocked")
        or not call.scoring.is_self_extend
        or len(call.scoring.bands) == 1
    ):
        return False
    others = (value for key, value in call.arguments.items() if key not in _UNDERSTOOD)
    return all(isinstance(value, bool) or not value for value in others)


def _together(rows: RowsLayer, call: AttentionCall) -> Tensor:
    shared, scoring = rows.shared, call.scoring
    assert shared is not None
    assert shared.keys is not None
    assert shared.values is not None
    if not isinstance(scoring, AttentionSpec):
        return rows_attention(call.query, shared.keys, shared.values, rows.own(), scoring)
    assert shared.grouped_keys is not None
    return extended_rows_attention(
        call.query, shared.keys, shared.values, rows.own(), scoring,
        grouped_keys=shared.grouped_keys, capacity=shared.capacity,
    )  # fmt: skip
