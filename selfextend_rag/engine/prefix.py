"""Tokens that were read once, with their keys and values, to be continued many times."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers.cache_utils import Cache, CacheLayerMixin

from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.positions import SelfExtend


@dataclass(frozen=True, slots=True, eq=False)
class CachedPrefix:
    """The first tokens of prompts to come, and the cache that holds them.

    It belongs to the model that read it and to the settings it was read under.

    Args:
        tokens: the token ids that were read.
        extension: the settings they were read under; None for plain attention.
        cache: their keys and values.
    """

    tokens: tuple[int, ...]
    extension: SelfExtend | None
    cache: SelfExtendCache = field(repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    @contextmanager
    def lent(self) -> Iterator[Cache]:
        """Hand out the cache, to be appended to within the block, and take it back as it was.

        Layers with a recurrent state can't be wound back, so a copy is lent where there are any.
        """
        if not _can_rewind(self.cache):
            yield copy.deepcopy(self.cache)
            return
        try:
            yield self.cache
        finally:
            rewind(self.cache, len(self.tokens))


def rewind(cache: Cache, length: int) -> None:
    """Cut a cache back to its first ``length`` tokens.

    Layer by layer, because a forward that was broken off leaves the later layers shorter.
    """
    layers: list[Any] = list(cache.layers)
    for layer in layers:
        filled = isinstance(layer, CacheLayerMixin) and layer.is_initialized
        if filled:
            layer.crop(min(0, length - layer.get_seq_length()))


def _can_rewind(cache: Cache) -> bool:
    return cache.is_croppable and not any(cache.is_linear)
