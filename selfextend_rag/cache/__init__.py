"""Key-value caches."""

from selfextend_rag.cache.cache import SelfExtendCache, expect
from selfextend_rag.cache.layers import FullLayer, GrowingLayer, mismatch
from selfextend_rag.cache.quantised import QuantisedLayer
from selfextend_rag.cache.rows import Row, RowsCache, RowsLayer

__all__ = [
    "FullLayer",
    "GrowingLayer",
    "QuantisedLayer",
    "Row",
    "RowsCache",
    "RowsLayer",
    "SelfExtendCache",
    "expect",
    "mismatch",
]
