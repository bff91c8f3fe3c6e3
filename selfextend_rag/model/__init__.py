"""Extend a transformers model, restore it, and say what can be extended."""

from selfextend_rag.cache.identity import rotary_state
from selfextend_rag.model.attention_fn import AttentionCall
from selfextend_rag.model.extension import (
    by_rows,
    current_settings,
    extend,
    extended,
    is_extended,
    restore,
    support,
    switched,
)
from selfextend_rag.model.full_attention import with_full_attention
from selfextend_rag.model.observe import observed
from selfextend_rag.model.report import LayerReport, SupportReport
from selfextend_rag.model.turns import turn_of, waiting_for

__all__ = [
    "AttentionCall",
    "LayerReport",
    "SupportReport",
    "by_rows",
    "current_settings",
    "extend",
    "extended",
    "is_extended",
    "observed",
    "restore",
    "rotary_state",
    "support",
    "switched",
    "turn_of",
    "waiting_for",
    "with_full_attention",
]
