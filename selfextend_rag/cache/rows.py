"""Several rows that continue the same tokens: those are held once, each row keeps its own.

A model sees a cache of B rows and hands over one new token of each. Attention that knows how takes
shared and own keys as they are. For any other, a row's keys are put behind the shared ones while it
attends, in the free space of the shared buffers, and removed then. Shared keys in few bits are
restored once for all rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from selfextend_rag.cache.cache import SelfExtendCache, layer_nbytes
from selfextend_rag.cache.layers import FullLayer, GrowingLayer, SlidingLayer
from selfextend_rag.cache.quantised import QuantisedLayer
from selfextend_rag.errors import UnsupportedModelError


class Row:
    """What one row has of its own, layer by layer.

    Of a layer that keeps all keys these are the keys and values behind the shared ones; of a
    sliding layer, all that it keeps, which is a window at most.

    Args:
        cache: the shared tokens and, behind them, the row's.
        shared: how many tokens are shared.
        capacity: tokens of the row to allocate.
    """

    @torch.inference_mode()
    def __init__(self, cache: Cache, shared: int, capacity: int) -> None:
        self.length = cache.get_seq_length()
        layers: list[Any] = cache.layers
        self.layers = [_own(layer, shared, capacity) for layer in layers]

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values, free space included."""
        return sum(map(layer_nbytes, self.layers))


def rows_unsupported_reason(cache: Cache) -> str:
    """Return why rows can't share a cache; empty if they can."""
    for layer in cache.layers:
        if type(layer) not in (GrowingLayer, QuantisedLayer, SlidingLayer):
            return f"a cache layer is a {type(layer).__name__}, whose state can't be shared"
    return ""


def _own(layer: FullLayer | SlidingLayer, shared: int, capacity: int) -> FullLayer | SlidingLayer:
    if isinstance(layer, FullLayer):
        new = layer.part(shared, layer.get_seq_length(), capacity)
        new.filled_under = None  # a row takes what comes; it is attended to behind the shared ones
        return new
    own = copy.copy(layer)
    if own.is_initialized:
        if layer.record_past:
            own.crop(0)  # what it kept in order to be rewound
        assert own.keys is not None
        assert own.values is not None
        own.keys, own.values = own.keys.clone(), own.values.clone()
    own.record_past = False
    return own


class RowsLayer(CacheLayerMixin):
    """One layer of a `RowsCache`; the keys that `update` returns are the new ones alone.

    Args:
        shared: the layer that holds the shared tokens; None where each row has all it sees.
        rows: what each row has of its own.
    """

    def __init__(self, shared: FullLayer | None, rows: Sequence[DynamicLayer]) -> None:
        CacheLayerMixin.__init__(self)
        self.is_sliding = shared is None
        self.is_initialized = True
        self.shared = shared
        self.unattended = False  # keys have come that nobody has asked for
        self._before = 0 if shared is None else shared.get_seq_length()
        self._rows = rows
        self._new_keys: Tensor | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []  # of layers in few bits none: see `row`
        self._restored: tuple[Tensor, Tensor] | None = None  # shared ones, while rows attend

    def __len__(self) -> int:
        return len(self._rows)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the rows have been filled."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append one token of each row, ``[B, Hkv, 1, D]``, and return what came."""
        self._restored, self._kept = None, []
        for i, row in enumerate(self._rows):
            kept = row.update(key_states[i : i + 1], value_states[i : i + 1])
            if not isinstance(row, QuantisedLayer):
                self._kept.append(kept)
        self.unattended = True
        self._new_keys = key_states
        return key_states, value_states

    def handed_out(self, keys: Tensor) -> bool:
        """Return whether this very tensor is what the latest `update` returned as keys."""
        return keys is self._new_keys

    def own(self) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and values that each row has of its own, ``[1, Hkv, S_i, D]``."""
        self.unattended = False
        return self._kept

    def own_keys(self, index: int) -> Tensor:
        """Return the keys that a row has of its own, ``[1, Hkv, S_i, D]``, to an observer."""
        return self._kept[index][0]

    @contextmanager
    def row(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Hand out all keys and values of one row, ``[1, Hkv, S, D]``, within the block.

        The last row comes last: what was restored for all of them is released then.
        """
        self.unattended = False
        shared, own = self.shared, self._rows[index]
        if isinstance(shared, QuantisedLayer) and isinstance(own, QuantisedLayer):
            yield self._behind_restored(shared, own)
            if index == len(self) - 1:
                self._restored = None
        elif shared is not None and isinstance(own, FullLayer):
            try:
                shared.append(own)
                held = shared.tensors()
                yield held["keys"], held["values"]
            finally:
                shared.crop(self._before - shared.get_seq_length())
        else:
            yield self._kept[index]

    def _behind_restored(
        self, shared: QuantisedLayer, own: QuantisedLayer
    ) -> tuple[Tensor, Tensor]:
        """Return the shared keys and values and, behind them, those of a row, as views."""
        if self._restored is None:
            most = self.get_seq_length()
            self._restored = shared.restored("keys", most), shared.restored("values", most)
        keys, values = (x[:, :, : self._before + own.get_seq_length()] for x in self._restored)
        keys[:, :, self._before :] = own.restored("keys")
        values[:, :, self._before :] = own.restored("values")
        return keys, values

    def get_seq_length(self) -> int:
        """Return the tokens of the longest row."""
        return self._before + max(int(row.get_seq_length()) for row in self._rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of the longest row's keys and the position of its first."""
        if self.shared is not None:
            return self.get_seq_length() + query_length, 0
        longest = max(self._rows, key=lambda row: int(row.get_seq_length()))
        length, offset = longest.get_mask_sizes(query_length)
        return length, offset

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1


class RowsCache(Cache):
    """What a model is given in place of a cache, for one token of each row.

    Args:
        shared: the cache of the shared tokens; it is as before when a forward has ended.
        rows: the rows, in the order of the batch.
    """

    def __init__(self, shared: SelfExtendCache, rows: Sequence[Row]) -> None:
        own = zip(*(row.layers for row in rows), strict=True)
        pairs = zip(shared.layers, own, strict=True)
        super().__init__(
            layers=[RowsLayer(x if isinstance(x, FullLayer) else None, each) for x, each in pairs]
        )
        self.positions = [row.length for row in rows]
        for name, noted in vars(shared).items():  # under which settings it was filled, above all
            vars(self).setdefault(name, noted)

    def check_attended(self) -> None:
        """Raise an UnsupportedModelError if attention took new keys for all there are."""
        for i, layer in enumerate(self.layers):
            if isinstance(layer, RowsLayer) and layer.unattended:
                raise UnsupportedModelError(
                    f"layer {i} does not attend through the attention function of its "
                    "configuration; ask one question at a time"
                )
