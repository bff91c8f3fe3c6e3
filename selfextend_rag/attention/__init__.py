"""SelfExtend attention on tensors: one operation, several implementations."""

from selfextend_rag.attention.api import IMPLEMENTATIONS, Impl, self_extend_attention
from selfextend_rag.attention.grouped import GroupedKeys

__all__ = ["IMPLEMENTATIONS", "GroupedKeys", "Impl", "self_extend_attention"]
