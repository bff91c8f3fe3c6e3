"""What an attention layer computes: how products become scores, and who is rotated to where."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfextend_rag.positions import Band
from selfextend_rag.rope import RotaryLayout


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scoring:
    """How a softmax is made of the products of queries and keys."""

    scaling: float  # factor on the products
    softcap: float | None = None  # softcap * tanh(score / softcap), as in Gemma 2
    sinks: Tensor | None = None  # [H], one more score per head with a value of 0, as in GPT-OSS

    def capped(self, scores: Tensor) -> Tensor:
        """Return scaled products after the softcap, if there is one."""
        if self.softcap is None:
            return scores
        return self.softcap * torch.tanh(scores / self.softcap)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionSpec(Scoring):
    """Attention of queries and keys that come un-rotated: each pair is rotated as its band says.

    Bands are nearest first. The first one is at distance 0 and leaves positions as they are; the
    reference takes any others after it, the fast implementations at most one.
    """

    rotary: RotaryLayout
    bands: tuple[Band, ...]

    def far_band(self, tokens: int) -> Band | None:
        """Return the second band, or None where no pair of so many tokens is that far apart."""
        if len(self.bands) == 1:
            return None
        _, far = self.bands
        return far if tokens > far.nearest else None
