"""Join partial attentions over disjoint keys into one softmax by their log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Return (out, log-sum-exp) of one softmax over the keys of both parts; overwrites ``out``.

    Args:
        out, other_out: ``[B, H, T, Dv]``, each already divided by its own softmax sum.
        lse, other_lse: ``[B, H, T]``, finite; float32, or float64 with float64 outputs.
    """
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    if out.dtype == share.dtype:
        merged = out.lerp_(other_out, share)
    else:
        merged = torch.lerp(out.to(share.dtype), other_out.to(share.dtype), share).to(out.dtype)
    return merged, torch.logaddexp(lse, other_lse)


def add_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Return ``out`` as if each softmax had one more score, ``sinks`` ``[H]``, of value 0."""
    share = torch.sigmoid(lse - sinks.to(lse.dtype).view(1, -1, 1)).unsqueeze(-1)
    return (out * share).to(out.dtype)
