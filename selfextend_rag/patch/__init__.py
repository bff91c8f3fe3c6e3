"""Extend a transformers model, restore it, and say what can be extended."""

from selfextend_rag.patch.frequencies import rotary_state
from selfextend_rag.patch.observe import observed
from selfextend_rag.patch.patch import (
    by_rows,
    current_settings,
    extend,
    extended,
    is_extended,
    restore,
    support,
    switched,
)
from selfextend_rag.patch.registry import AttentionCall
from selfextend_rag.patch.report import LayerReport, SupportReport
from selfextend_rag.patch.turns import turn_of, waiting_for

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
]
