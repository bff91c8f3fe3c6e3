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
from llama_index.llms.selfextend.documents import (
    FileReader,
    FullDocumentParser,
    FullDocumentPromptHelper,
    use_full_documents,
)
from llama_index.llms.selfextend.engines import FullDocumentChatEngine, FullDocumentQueryEngine
from llama_index.llms.selfextend.retriever import FullDocumentRetriever

__all__ = [
    "FileReader",
    "FullDocumentChatEngine",
    "FullDocumentParser",
    "FullDocumentPromptHelper",
    "FullDocumentQueryEngine",
    "FullDocumentRetriever",
    "SelfExtendLLM",
    "use_full_documents",
]
