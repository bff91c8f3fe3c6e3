"""Text in, text out: whole documents are read once and asked many times.

A module is imported when a name of it is first used: plans do without most of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the table below in the terms of type checkers; a test compares them
    from selfextend_rag.llm import frameworks as frameworks
    from selfextend_rag.llm.answers.answer import Answer as Answer
    from selfextend_rag.llm.answers.stream import TextStream as TextStream
    from selfextend_rag.llm.base import BaseLLM as BaseLLM
    from selfextend_rag.llm.base import BaseReading as BaseReading
    from selfextend_rag.llm.library import KeptReadings as KeptReadings
    from selfextend_rag.llm.library import shared_llm as shared_llm
    from selfextend_rag.llm.llm import LongContextLLM as LongContextLLM
    from selfextend_rag.llm.reading import Reading as Reading
    from selfextend_rag.llm.remote import RemoteLLM as RemoteLLM
    from selfextend_rag.llm.remote import RemoteReading as RemoteReading
    from selfextend_rag.text.messages import ToolCall as ToolCall
    from selfextend_rag.text.messages import question_and_history as question_and_history
    from selfextend_rag.text.prompts import PromptBuilder as PromptBuilder
else:
    _NAMES = {
        "llm": "frameworks",
        "llm.answers.answer": "Answer",
        "llm.answers.stream": "TextStream",
        "llm.base": "BaseLLM BaseReading",
        "llm.library": "KeptReadings shared_llm",
        "llm.llm": "LongContextLLM",
        "llm.reading": "Reading",
        "llm.remote": "RemoteLLM RemoteReading",
        "text.messages": "ToolCall question_and_history",
        "text.prompts": "PromptBuilder",
    }
    _HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
    __all__ = sorted(_HOMES)

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "frameworks":
            return import_module(f"{__name__}.frameworks")
        return getattr(import_module(f"selfextend_rag.{_HOMES[name]}"), name)
