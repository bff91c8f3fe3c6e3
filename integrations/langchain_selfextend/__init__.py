"""LangChain classes on top of selfextend-rag: a local model that reads whole documents."""

try:
    import langchain_core  # noqa: F401  is it installed?
except ImportError as error:
    raise ImportError(
        "langchain_selfextend needs LangChain, which is not installed; "
        "install it with: pip install 'selfextend-rag[langchain]'"
    ) from error

from langchain_selfextend.chains import create_full_document_chain
from langchain_selfextend.chat_models import ChatSelfExtend
from langchain_selfextend.documents import FileLoader
from langchain_selfextend.llms import SelfExtendLLM
from langchain_selfextend.retrievers import FullDocumentRetriever
from langchain_selfextend.settings import ContextWindowExceeded

__all__ = [
    "ChatSelfExtend",
    "ContextWindowExceeded",
    "FileLoader",
    "FullDocumentRetriever",
    "SelfExtendLLM",
    "create_full_document_chain",
]
