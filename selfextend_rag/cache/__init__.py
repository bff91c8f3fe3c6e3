"""Key-value caches."""

from selfextend_rag.cache.cache import SelfExtendCache, let_notice
from selfextend_rag.cache.layers import FullLayer, GrowingLayer
from selfextend_rag.cache.quantised import QuantisedLayer
from selfextend_rag.cache.rows import Row, RowsCache, RowsLayer
from selfextend_rag.cache.static import NoticingStaticLayer

__all__ = [
    "FullLayer",
    "GrowingLayer",
    "NoticingStaticLayer",
    "QuantisedLayer",
    "Row",
    "RowsCache",
    "RowsLayer",
    "SelfExtendCache",
    "let_notice",
]
