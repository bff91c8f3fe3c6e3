"""LlamaIndex classes on top of selfextend-rag: models, retrievers and engines over whole documents.

Importing this changes nothing. See docs/llama_index.md.
"""

try:
    import llama_index.core  # noqa: F401  is it installed?
except ImportError as error:
    raise ImportError(
        "llama_index.llms.selfextend needs LlamaIndex, which is not installed; "
        "install it with: pip install 'selfextend-rag[llama-index]'"
    ) from error

from llama_index.llms.selfextend.base import SelfExtendLLM
from llama_index.llms.selfextend.chat_engine import FullDocumentChatEngine
from llama_index.llms.selfextend.query_engine import FullDocumentQueryEngine
from llama_index.llms.selfextend.retriever import FullDocumentRetriever
from llama_index.llms.selfextend.whole import (
    FullDocumentParser,
    FullDocumentPromptHelper,
    use_full_documents,
)

__all__ = [
    "FullDocumentChatEngine",
    "FullDocumentParser",
    "FullDocumentPromptHelper",
    "FullDocumentQueryEngine",
    "FullDocumentRetriever",
    "SelfExtendLLM",
    "use_full_documents",
]
