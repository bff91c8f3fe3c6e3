"""Join partial attentions over disjoint keys into one softmax by their log-sum-exp."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_AT_ONCE = 1 << 17  # 16-bit numbers merged at a time on a CPU: in 32 bits they stay in its cache


def merge(
    out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor, into: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (out, log-sum-exp) of one softmax over the keys of both parts.

    Args:
        out, other_out: ``[B, H, T, Dv]``, each already divided by its own softmax sum.
        lse, other_lse: ``[B, H, T]``, finite; float32, or float64 with float64 outputs.
        into: where to write the merged output; by default over ``out``.
    """
    into = out if into is None else into
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    if out.dtype == share.dtype:
        torch.lerp(out, other_out, share, out=into)
    else:
        for part in _parts(out):
            wide, other = out[:, :, part].to(share.dtype), other_out[:, :, part].to(share.dtype)
            into[:, :, part] = torch.lerp(wide, other, share[:, :, part])
    return into, torch.logaddexp(lse, other_lse)


def _parts(x: Tensor) -> Iterator[slice]:
    step = max(1, _AT_ONCE // max(1, x[:, :, :1].numel())) if x.device.type == "cpu" else x.shape[2]
    return (slice(begin, begin + step) for begin in range(0, x.shape[2], step))


def add_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Return ``out`` as if each softmax had one more score, ``sinks`` ``[H]``, of value 0."""
    share = torch.sigmoid(lse - sinks.to(lse.dtype).view(1, -1, 1)).unsqueeze(-1)
    return (out * share).to(out.dtype)
