"""Check an extended model against the stock one, at a group size of 1, where both must agree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from selfextend_rag.model.agreement import gap

_PADDING = 5
# Differences allowed, relative to the largest logit: what reordered sums do to a deep model.


@torch.no_grad()
def logits_of(model: PreTrainedModel, input_ids: Tensor) -> dict[str, Tensor]:
    """Return the logits ``[T, V]`` of ``input_ids`` ``[1, T]``, computed in three ways.

    Whole; as the left-padded row of a batch; and in two pieces and a single token with a cache.
    The padded way is left out where the model does not take padding.
    """
    length = input_ids.shape[1]
    whole = model(input_ids=input_ids, use_cache=False)
    if getattr(whole, "logits", None) is None:
        raise TypeError(
            f"{type(model).__name__} returns no logits; give the causal language model around it"
        )
    found = {"whole": whole.logits[0]}
    found["padded"] = _padded(model, input_ids)[_PADDING:]
    cache = DynamicCache(config=model.config)
    pieces, begin = [], 0
    for end in (length // 2, length - 1, length):
        piece = input_ids[:, begin:end]
        positions = torch.arange(begin, end, device=piece.device)[None]
        pieces.append(
            model(
                input_ids=piece, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits[0]
        )
        begin = end
    found["cached"] = torch.cat(pieces)
    return {name: x.float().cpu() for name, x in found.items()}


def _padded(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    longer = torch.cat([input_ids[:, :_PADDING], input_ids], dim=1)
    batch = torch.cat([longer, longer.flip(1)])
    mask = torch.ones_like(batch)
    mask[0, :_PADDING] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return model(
        input_ids=batch, attention_mask=mask, position_ids=positions, use_cache=False
    ).logits[0]


def difference(stock: dict[str, Tensor], extended: dict[str, Tensor], dtype: Any) -> str:
    """Return what differs, in words; empty when every way agrees."""
    for way, expected in stock.items():
        found = gap(expected, extended[way], dtype)
        if found is not None:
            return (
                f"its logits would change without any extension ({way} prompt: by {found[0]:.2g} "
                f"at logits up to {found[1]:.2g})"
            )
    return ""
