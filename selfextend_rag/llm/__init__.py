"""Text in, text out: whole documents are read once and asked many times."""

from selfextend_rag.llm.answer import Answer, TextStream
from selfextend_rag.llm.frameworks import fit_or_rank, open_llm, schema_request, sort_options
from selfextend_rag.llm.library import KeptReadings, shared_llm
from selfextend_rag.llm.llm import LongContextLLM
from selfextend_rag.llm.reading import Reading
from selfextend_rag.text.messages import ToolCall, question_and_history
from selfextend_rag.text.prompts import PromptBuilder

__all__ = [
    "Answer",
    "KeptReadings",
    "LongContextLLM",
    "PromptBuilder",
    "Reading",
    "TextStream",
    "ToolCall",
    "fit_or_rank",
    "open_llm",
    "question_and_history",
    "schema_request",
    "shared_llm",
    "sort_options",
]
