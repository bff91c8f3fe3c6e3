"""A sliding-window layer that can be wound back, on every transformers that is supported."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer


class SlidingLayer(DynamicSlidingWindowLayer):
    """transformers' sliding layer; ``update`` hands out no key that is outside the window.

    While the past is recorded it keeps more than that. Before 5.18 transformers handed all of it
    out, more than `get_mask_sizes` announces to the mask.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append and return the keys and values that the new tokens see."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        visible = self.sliding_window - 1 + key_states.shape[-2]
        return keys[:, :, -visible:], values[:, :, -visible:]
