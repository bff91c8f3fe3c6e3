"""A local model reads whole documents, its context window stretched by SelfExtend.

Importing it does nothing: no patch, no download, and no further module until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table below in the terms of type checkers; a test compares them
    from selfextend_rag.display import progress_bar as progress_bar
    from selfextend_rag.documents import Document as Document
    from selfextend_rag.documents import DocumentError as DocumentError
    from selfextend_rag.documents import Location as Location
    from selfextend_rag.documents import Picture as Picture
    from selfextend_rag.documents import ReadFiles as ReadFiles
    from selfextend_rag.documents import Remark as Remark
    from selfextend_rag.documents import SkippedFile as SkippedFile
    from selfextend_rag.documents import read_documents as read_documents
    from selfextend_rag.documents import word_relevance as word_relevance
    from selfextend_rag.engine import Engine as Engine
    from selfextend_rag.engine import GenerationSettings as GenerationSettings
    from selfextend_rag.engine import Usage as Usage
    from selfextend_rag.errors import CacheMismatchError as CacheMismatchError
    from selfextend_rag.errors import ConstraintError as ConstraintError
    from selfextend_rag.errors import ContextBudgetExceeded as ContextBudgetExceeded
    from selfextend_rag.errors import CorruptReadingError as CorruptReadingError
    from selfextend_rag.errors import DocumentTooLarge as DocumentTooLarge
    from selfextend_rag.errors import GenerationCancelled as GenerationCancelled
    from selfextend_rag.errors import MemoryBudgetExceeded as MemoryBudgetExceeded
    from selfextend_rag.errors import ModelLoadError as ModelLoadError
    from selfextend_rag.errors import ModelNotServed as ModelNotServed
    from selfextend_rag.errors import NotOnServer as NotOnServer
    from selfextend_rag.errors import PromptMismatch as PromptMismatch
    from selfextend_rag.errors import ReadingFileError as ReadingFileError
    from selfextend_rag.errors import SchemaError as SchemaError
    from selfextend_rag.errors import SelfExtendError as SelfExtendError
    from selfextend_rag.errors import ServerAccessError as ServerAccessError
    from selfextend_rag.errors import ServerBusy as ServerBusy
    from selfextend_rag.errors import ServerError as ServerError
    from selfextend_rag.errors import ServerUnreachable as ServerUnreachable
    from selfextend_rag.errors import ToolError as ToolError
    from selfextend_rag.errors import UnknownMemoryError as UnknownMemoryError
    from selfextend_rag.errors import UnknownPretrainingWindow as UnknownPretrainingWindow
    from selfextend_rag.errors import UnsupportedDocument as UnsupportedDocument
    from selfextend_rag.errors import UnsupportedModelError as UnsupportedModelError
    from selfextend_rag.evidence import Evidence as Evidence
    from selfextend_rag.llm import Answer as Answer
    from selfextend_rag.llm import BaseLLM as BaseLLM
    from selfextend_rag.llm import BaseReading as BaseReading
    from selfextend_rag.llm import KeptReadings as KeptReadings
    from selfextend_rag.llm import LongContextLLM as LongContextLLM
    from selfextend_rag.llm import Reading as Reading
    from selfextend_rag.llm import RemoteLLM as RemoteLLM
    from selfextend_rag.llm import RemoteReading as RemoteReading
    from selfextend_rag.llm import TextStream as TextStream
    from selfextend_rag.llm import ToolCall as ToolCall
    from selfextend_rag.llm import frameworks as frameworks
    from selfextend_rag.llm import question_and_history as question_and_history
    from selfextend_rag.llm import shared_llm as shared_llm
    from selfextend_rag.model import extend as extend
    from selfextend_rag.model import extended as extended
    from selfextend_rag.model import restore as restore
    from selfextend_rag.model import support as support
    from selfextend_rag.planning import ContextBudgetPlanner as ContextBudgetPlanner
    from selfextend_rag.planning import ContextPlan as ContextPlan
    from selfextend_rag.planning import DeviceMemory as DeviceMemory
    from selfextend_rag.planning import MemoryEstimate as MemoryEstimate
    from selfextend_rag.planning import pretraining_window_of as pretraining_window_of
    from selfextend_rag.positions import SelfExtend as SelfExtend
else:
    _NAMES = {
        "display": "progress_bar",
        "documents": (
            "Document DocumentError Location Picture ReadFiles Remark SkippedFile "
            "read_documents word_relevance"
        ),
        "engine": "Engine GenerationSettings Usage",
        "errors": (
            "CacheMismatchError ConstraintError ContextBudgetExceeded CorruptReadingError "
            "DocumentTooLarge GenerationCancelled MemoryBudgetExceeded ModelLoadError "
            "ModelNotServed NotOnServer PromptMismatch ReadingFileError SchemaError "
            "SelfExtendError ServerAccessError ServerBusy ServerError ServerUnreachable ToolError "
            "UnknownMemoryError UnknownPretrainingWindow UnsupportedDocument "
            "UnsupportedModelError"
        ),
        "evidence": "Evidence",
        "llm": (
            "Answer BaseLLM BaseReading KeptReadings LongContextLLM Reading RemoteLLM "
            "RemoteReading TextStream ToolCall frameworks question_and_history shared_llm"
        ),
        "model": "extend extended restore support",
        "planning": (
            "ContextBudgetPlanner ContextPlan DeviceMemory MemoryEstimate pretraining_window_of"
        ),
        "positions": "SelfExtend",
    }
    _HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
    __all__ = sorted(_HOMES)

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
