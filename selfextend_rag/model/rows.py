"""Attention of a batch whose rows share most of their keys.

On a CPU all rows look at the shared keys together. Elsewhere, and where a layer asks for more than
that knows, each row attends by itself, as it would alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from selfextend_rag.attention import AttentionSpec, Scoring
from selfextend_rag.attention.shared import extended_rows_attention, rows_attention
from selfextend_rag.cache import RowsLayer
from selfextend_rag.errors import UnsupportedModelError

if TYPE_CHECKING:
    from selfextend_rag.model.attention_fn import Binding

_UNDERSTOOD = ("scaling", "softcap", "s_aux")

Attend = Callable[..., tuple[Tensor, Tensor | None]]


def attend_by_rows(
    attend: Attend,
    module: nn.Module,
    query: Tensor,
    rows: RowsLayer,
    mask: Any,
    arguments: dict[str, Any],
    binding: Binding | None,
    scoring: Scoring,
) -> tuple[Tensor, None]:
    """Return the attention of one token of each row, ``[B, 1, H, Dv]``.

    A single query sees all that its row keeps, so no mask is needed; one that would hide anything
    is refused.

    Args:
        attend: an attention function as transformers has them.
        module: the attention module.
        query: ``[B, H, 1, D]``.
        rows: what each row sees.
        mask: what the model made for the longest row.
        arguments: of the function, by name.
        binding: how the layer is extended; None where it is plain.
        scoring: how the layer scores a key.

    Raises:
        UnsupportedModelError: the model asks for more than this.
    """
    name = type(module).__name__
    if query.shape[2] != 1 or len(query) != len(rows):
        raise UnsupportedModelError(f"{name} asks for other queries than one token of each row")
    if not _hides_nothing(mask):
        raise UnsupportedModelError(f"{name} hides keys that its cache keeps")
    for key, value in arguments.items():
        if isinstance(value, Tensor) and key not in ("s_aux", "position_ids"):
            raise UnsupportedModelError(f"{name} attends by {key!r}, which may differ by row")
    arguments = {key: value for key, value in arguments.items() if key != "position_ids"}
    if _fits_together(rows, query, arguments, binding):
        out = _together(rows, query, scoring)
        return out.transpose(1, 2).contiguous(), None
    outs = []
    for i in range(len(rows)):
        with rows.row(i) as (keys, values):
            outs.append(attend(module, query[i : i + 1], keys, values, None, **arguments)[0])
    return torch.cat(outs), None


def _hides_nothing(mask: Any) -> bool:
    if mask is None:
        return True
    if not isinstance(mask, Tensor):
        return False
    return bool(mask.all() if mask.dtype == torch.bool else (mask == 0).all())


def _fits_together(
    rows: RowsLayer, query: Tensor, arguments: dict[str, Any], binding: Binding | None
) -> bool:
    if rows.shared is None or rows.shared.keys is None or query.device.type != "cpu":
        return False
    if binding is not None and (
        binding.impl not in ("auto", "blocked") or binding.settings.group_size == 1
    ):
        return False
    others = (value for key, value in arguments.items() if key not in _UNDERSTOOD)
    return all(value is None or isinstance(value, bool) for value in others)


def _together(rows: RowsLayer, query: Tensor, scoring: Scoring) -> Tensor:
    shared = rows.shared
    assert shared is not None
    assert shared.keys is not None
    assert shared.values is not None
    if not isinstance(scoring, AttentionSpec):
        return rows_attention(query, shared.keys, shared.values, rows.own(), scoring)
    assert shared.grouped_keys is not None
    return extended_rows_attention(
        query, shared.keys, shared.values, rows.own(), scoring,
        grouped_keys=shared.grouped_keys, capacity=shared.capacity,
    )  # fmt: skip
