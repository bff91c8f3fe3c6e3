"""Tokens that were read once, with their keys and values, to be continued many times."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.cache.identity import model_state
from selfextend_rag.cache.rewind import can_rewind, rewind
from selfextend_rag.errors import CacheMismatchError
from selfextend_rag.positions import SelfExtend


@dataclass(frozen=True, slots=True, eq=False)
class CachedPrefix:
    """The first tokens of prompts to come, and the cache that holds them.

    It belongs to the model that read it and to the settings it was read under.

    Args:
        tokens: the token ids that were read.
        settings: SelfExtend's, which they were read under; None for plain attention.
        cache: their keys and values.
        state: of the model when it read them, see `model_state`; None is not looked at.
    """

    tokens: tuple[int, ...]
    settings: SelfExtend | None
    cache: SelfExtendCache = field(repr=False)
    state: Hashable = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse a model that is not as it was when it read the tokens.

        Raises:
            CacheMismatchError: its weights, adapters or rotary frequencies have changed.
        """
        if self.state is not None and self.state != model_state(model):
            raise CacheMismatchError(
                f"the weights or rotary frequencies of {type(model).__name__}, or its adapters, "
                f"have changed since it read these {len(self)} tokens; read them again, or put "
                "them back"
            )

    def settings_for(
        self, tokens: tuple[int, ...], settings: SelfExtend | None = None
    ) -> SelfExtend | None:
        """Return the settings to run a prompt under that begins with this prefix.

        Raises:
            CacheMismatchError: it does not, or other settings than these are asked for.
        """
        if settings not in (None, self.settings):
            raise CacheMismatchError(
                f"the cached tokens were read under {self.settings}, not under {settings}; "
                "read them again"
            )
        if tokens[: len(self)] != self.tokens:
            raise CacheMismatchError(
                f"the prompt of {len(tokens)} tokens does not begin with the {len(self)} cached "
                "ones"
            )
        if len(tokens) == len(self):
            raise CacheMismatchError(
                f"all {len(tokens)} tokens of the prompt are cached; the last must be run, for its "
                "logits, so leave it out of the prefix"
            )
        return self.settings

    @contextmanager
    def borrowed(self) -> Iterator[SelfExtendCache]:
        """Yield the cache, to be appended to within the block; then it is cut back.

        Layers with a recurrent state can't be cut back, so a copy is yielded where there are any.
        """
        if not can_rewind(self.cache):
            yield copy.deepcopy(self.cache)
            return
        try:
            yield self.cache
        finally:
            rewind(self.cache, len(self.tokens))
