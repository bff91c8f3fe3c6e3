"""SelfExtend attention on tensors: one operation, several implementations."""

from selfextend_rag.attention.api import IMPLEMENTATIONS, Impl, self_extend_attention
from selfextend_rag.attention.grouped import GroupedKeys
from selfextend_rag.attention.weights import Scoring, attention_mass

__all__ = [
    "IMPLEMENTATIONS",
    "GroupedKeys",
    "Impl",
    "Scoring",
    "attention_mass",
    "self_extend_attention",
]
