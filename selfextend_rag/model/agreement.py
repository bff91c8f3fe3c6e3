"""Whether two ways to run a model agree, for what is measured on a model before it is relied on."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the largest logit: far above what another order of sums does, far below a wrong position.
_TOLERANCE = 1e-3  # in float64 too: stock models rotate in float32 at most
LOW_PRECISION_TOLERANCE = 0.15
FAILURES = (
    ValueError,
    TypeError,
    RuntimeError,
    IndexError,
    AttributeError,
    KeyError,
    AssertionError,  # some models check their arguments so
)
"""What a model may raise that can't be run in some way."""


def gap(
    expected: Tensor, found: Tensor, dtype: torch.dtype, low: float = LOW_PRECISION_TOLERANCE
) -> tuple[float, float] | None:
    """Return the largest change of logits and the largest logit, None if they agree.

    Args:
        expected: logits of the usual way, of any shape.
        found: those of the other way.
        dtype: the model's precision.
        low: the share of the largest logit by which they may differ in 16 bits or fewer.
    """
    scale = float(expected.abs().max())
    change = float((found.double() - expected.double()).abs().max())
    tolerance = _TOLERANCE if dtype in (torch.float32, torch.float64) else low
    return None if change <= tolerance * scale else (change, scale)


def failure(error: Exception) -> str:
    """Return in words that a model can't be run in the way that was tried."""
    return f"it fails in a check: {type(error).__name__}: {error}"


def disagreement(
    expected: Tensor, found: Tensor, dtype: torch.dtype, low: float = LOW_PRECISION_TOLERANCE
) -> str:
    """Return a `gap` in words, empty if there is none."""
    found_gap = gap(expected, found, dtype, low)
    if found_gap is None:
        return ""
    return "its logits would change by {:.2g}, at logits up to {:.2g}".format(*found_gap)
