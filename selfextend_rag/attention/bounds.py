"""Where rows of tokens begin and stop in a cache, as integers on the device.

A padding mask of S slots is three numbers for each row, unless there is padding between tokens.
Three numbers can be read by a kernel without the host waiting for them, so that a static cache's
decode step has no synchronisation and can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

HOLES = (
    "padding between tokens of a row can't be checked while a graph is captured or compiled: mask"
    " tokens at the ends of a row alone"
)


def bounds_of(mask: Tensor, end: int | Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds ``[B, 3]`` int32, and for each row whether the mask has holes, ``[B]``.

    Bounds are slots: where the row's tokens begin, where they stop, and where the queries end; the
    last one is the same for all rows. A token's position is its slot less the first number.

    Args:
        mask: ``[B, S]`` bool, False at padding and from ``end`` on.
        end: the slot after the last query, which may itself be padding.
    """
    slots = torch.arange(mask.shape[1], device=mask.device)
    start = mask.int().argmax(-1)
    last = torch.where(mask, slots, -1).amax(-1)
    count = mask.sum(-1)
    stop = torch.where(count > 0, last + 1, start)
    bounds = torch.stack([start, stop, torch.zeros_like(start) + end], dim=-1).int()
    return bounds, count != stop - start


def bounds_without_holes(mask: Tensor) -> Tensor | None:
    """Return the bounds of a mask whose last slot is the last query; None if a row has holes.

    Where the host can't wait to see them, holes stop with an error on the device.
    """
    bounds, holes = bounds_of(mask, mask.shape[1])
    if host_waits_are_forbidden(mask.device):
        refuse_holes(holes)
        return bounds
    return None if bool(holes.any()) else bounds


def mask_of(bounds: Tensor, slots: int) -> Tensor:
    """Return the mask ``[B, slots]`` that rows with these bounds have."""
    index = torch.arange(slots, device=bounds.device)
    return (index >= bounds[:, :1]) & (index < bounds[:, 1:2])


def host_waits_are_forbidden(device: torch.device) -> bool:
    """Return whether a value must not be read now: while compiling or capturing a graph."""
    if torch.compiler.is_compiling():
        return True
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse_holes(holes: Tensor) -> None:
    """Stop with an error on the device, later, if a row has holes; for when the host can't wait."""
    torch._assert_async(~holes.any(), HOLES)
