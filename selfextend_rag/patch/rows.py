"""Attention of a batch whose rows share most of their keys: row by row, each with its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from selfextend_rag.cache import RowsLayer
from selfextend_rag.errors import UnsupportedModelError

Attend = Callable[..., tuple[Tensor, Tensor | None]]


def attend_by_rows(
    attend: Attend,
    module: nn.Module,
    query: Tensor,
    rows: RowsLayer,
    mask: Any,
    arguments: dict[str, Any],
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
