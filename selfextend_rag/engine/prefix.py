"""Tokens that were read once, with their keys and values, to be continued many times."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from transformers import PreTrainedModel
from transformers.cache_utils import Cache

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
        extension: the settings they were read under; None for plain attention.
        cache: their keys and values.
        state: of the model when it read them, see `model_state`; None is not looked at.
    """

    tokens: tuple[int, ...]
    extension: SelfExtend | None
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

    @contextmanager
    def lent(self) -> Iterator[Cache]:
        """Hand out the cache, to be appended to within the block, and take it back as it was.

        Layers with a recurrent state can't be wound back, so a copy is lent where there are any.
        """
        if not can_rewind(self.cache):
            yield copy.deepcopy(self.cache)
            return
        try:
            yield self.cache
        finally:
            rewind(self.cache, len(self.tokens))
