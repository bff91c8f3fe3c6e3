"""Key-value caches."""

from selfextend_rag.cache.layers import GrowingLayer, SelfExtendCache

__all__ = ["GrowingLayer", "SelfExtendCache"]
