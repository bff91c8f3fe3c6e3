"""A local model reads whole documents, its context window stretched by SelfExtend.

Importing this package does nothing: no patch, no download, and no module beyond this one until a
name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfextend_rag.documents import Document, DocumentError, word_relevance
    from selfextend_rag.engine import Engine, GenerationSettings, Usage, answer_options
    from selfextend_rag.errors import (
        CacheMismatchError,
        ConstraintError,
        ContextBudgetExceeded,
        CorruptReadingError,
        DocumentTooLarge,
        GenerationCancelled,
        MemoryBudgetExceeded,
        ModelLoadError,
        ReadingFileError,
        SchemaError,
        SelfExtendError,
        ToolError,
        UnknownMemoryError,
        UnknownPretrainingWindow,
        UnsupportedModelError,
    )
    from selfextend_rag.evidence import Evidence
    from selfextend_rag.llm import (
        Answer,
        KeptReadings,
        LongContextLLM,
        Reading,
        TextStream,
        ToolCall,
        fit_or_rank,
        open_llm,
        question_and_history,
        schema_request,
        shared_llm,
        sort_options,
    )
    from selfextend_rag.model import extend, extended, restore, support
    from selfextend_rag.planning import (
        ContextBudgetPlanner,
        ContextPlan,
        DeviceMemory,
        MemoryEstimate,
        pretraining_window_of,
    )
    from selfextend_rag.positions import SelfExtend

_NAMES = {
    "documents": ("Document", "DocumentError", "word_relevance"),
    "engine": ("Engine", "GenerationSettings", "Usage", "answer_options"),
    "errors": (
        "CacheMismatchError",
        "ConstraintError",
        "ContextBudgetExceeded",
        "CorruptReadingError",
        "DocumentTooLarge",
        "GenerationCancelled",
        "MemoryBudgetExceeded",
        "ModelLoadError",
        "ReadingFileError",
        "SchemaError",
        "SelfExtendError",
        "ToolError",
        "UnknownMemoryError",
        "UnknownPretrainingWindow",
        "UnsupportedModelError",
    ),
    "evidence": ("Evidence",),
    "llm": (
        "Answer",
        "KeptReadings",
        "LongContextLLM",
        "Reading",
        "TextStream",
        "ToolCall",
        "fit_or_rank",
        "open_llm",
        "question_and_history",
        "schema_request",
        "shared_llm",
        "sort_options",
    ),
    "model": ("extend", "extended", "restore", "support"),
    "planning": (
        "ContextBudgetPlanner",
        "ContextPlan",
        "DeviceMemory",
        "MemoryEstimate",
        "pretraining_window_of",
    ),
    "positions": ("SelfExtend",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = [
    "Answer",
    "CacheMismatchError",
    "ConstraintError",
    "ContextBudgetExceeded",
    "ContextBudgetPlanner",
    "ContextPlan",
    "CorruptReadingError",
    "DeviceMemory",
    "Document",
    "DocumentError",
    "DocumentTooLarge",
    "Engine",
    "Evidence",
    "GenerationCancelled",
    "GenerationSettings",
    "KeptReadings",
    "LongContextLLM",
    "MemoryBudgetExceeded",
    "MemoryEstimate",
    "ModelLoadError",
    "Reading",
    "ReadingFileError",
    "SchemaError",
    "SelfExtend",
    "SelfExtendError",
    "TextStream",
    "ToolCall",
    "ToolError",
    "UnknownMemoryError",
    "UnknownPretrainingWindow",
    "UnsupportedModelError",
    "Usage",
    "answer_options",
    "extend",
    "extended",
    "fit_or_rank",
    "open_llm",
    "pretraining_window_of",
    "question_and_history",
    "restore",
    "schema_request",
    "shared_llm",
    "sort_options",
    "support",
    "word_relevance",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
