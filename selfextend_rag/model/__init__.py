"""Extend a transformers model, restore it, and say what can be extended."""

from selfextend_rag.model.extension import (
    ModelLock,
    by_rows,
    continuation_reason,
    current_settings,
    extend,
    extended,
    is_extended,
    lock_of,
    refuse_chunks,
    restore,
    support,
    switched,
)
from selfextend_rag.model.hooks import AttentionCall
from selfextend_rag.model.observe import observed
from selfextend_rag.model.report import SupportReport
from selfextend_rag.model.tiny import with_full_attention

__all__ = [
    "AttentionCall",
    "ModelLock",
    "SupportReport",
    "by_rows",
    "continuation_reason",
    "current_settings",
    "extend",
    "extended",
    "is_extended",
    "lock_of",
    "observed",
    "refuse_chunks",
    "restore",
    "support",
    "switched",
    "with_full_attention",
]
