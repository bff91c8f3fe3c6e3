"""LangChain classes on top of selfextend-rag.

The chat model, the retriever and the chain come with the next release; this release reserves the
import name and checks that the framework is installed.
"""

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise ImportError(
        "langchain_selfextend needs LangChain, which is not installed; "
        "install it with: pip install 'selfextend-rag[langchain]'"
    ) from error

__all__: list[str] = []
