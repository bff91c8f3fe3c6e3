"""Text in, text out: whole documents are read once and asked many times."""

from selfextend_rag.llm import frameworks
from selfextend_rag.llm.answer import Answer, TextStream
from selfextend_rag.llm.base import BaseLLM, BaseReading
from selfextend_rag.llm.library import KeptReadings, shared_llm
from selfextend_rag.llm.llm import LongContextLLM
from selfextend_rag.llm.reading import Reading
from selfextend_rag.llm.remote import RemoteLLM, RemoteReading
from selfextend_rag.text.messages import ToolCall, question_and_history
from selfextend_rag.text.prompts import PromptBuilder

__all__ = [
    "Answer",
    "BaseLLM",
    "BaseReading",
    "KeptReadings",
    "LongContextLLM",
    "PromptBuilder",
    "Reading",
    "RemoteLLM",
    "RemoteReading",
    "TextStream",
    "ToolCall",
    "frameworks",
    "question_and_history",
    "shared_llm",
]
