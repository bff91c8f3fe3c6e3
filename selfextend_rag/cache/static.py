"""Layers of a static cache that notice when an extended model's keys are continued plainly."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import StaticLayer

from selfextend_rag.errors import CacheMismatchError


class NoticingStaticLayer(StaticLayer):
    """A `transformers.StaticLayer` whose keys are an extended model's, or a plain one's.

    What it notices are facts of the host: nothing is read back from the device, so a decode step
    compiles as it did.
    """

    _expected = False  # the next keys come from an extended model
    _held_under = ""  # the attention under which its keys came

    def expect(self) -> None:
        """Take note that an extended model is about to add tokens; a plain one never says so."""
        self._expected = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values in their place; see `transformers.StaticLayer.update`.

        Raises:
            CacheMismatchError: the keys before came the other way.
        """
        how = "SelfExtend" if self._expected else "plain attention"
        if self._held_under not in ("", how):
            raise CacheMismatchError(
                f"this cache was filled under {self._held_under}, and can't be continued under "
                f"{how}; read its tokens again with a new cache"
            )
        self._held_under, self._expected = how, False
        return super().update(key_states, value_states, *args, **kwargs)

    def reset(self) -> None:
        """Forget all tokens, and under what they came."""
        self._held_under, self._expected = "", False
        super().reset()


def notice_in_place(layer: Any) -> None:
    """Make a `StaticLayer` notice; its buffers stay where compiled graphs found them."""
    if type(layer) is StaticLayer:
        layer.__class__ = NoticingStaticLayer
