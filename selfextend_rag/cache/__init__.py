"""Key-value caches."""

from selfextend_rag.cache.layers import GrowingLayer, SelfExtendCache
from selfextend_rag.cache.rows import Row, RowsCache, RowsLayer

__all__ = ["GrowingLayer", "Row", "RowsCache", "RowsLayer", "SelfExtendCache"]
