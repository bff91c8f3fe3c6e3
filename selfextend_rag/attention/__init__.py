"""SelfExtend attention on tensors: one operation, several implementations."""

from selfextend_rag.attention.api import Impl, attend, self_extend_attention
from selfextend_rag.attention.grouped import GroupedKeys
from selfextend_rag.attention.mass import attention_mass
from selfextend_rag.attention.partial import AttentionSpec, Scoring

__all__ = [
    "AttentionSpec",
    "GroupedKeys",
    "Impl",
    "Scoring",
    "attend",
    "attention_mass",
    "self_extend_attention",
]
