"""LlamaIndex classes on top of selfextend-rag.

The language model, the retriever and the query engine come with the next release; this release
reserves the import name and checks that the framework is installed.
"""

try:
    import llama_index.core  # noqa: F401
except ImportError as error:
    raise ImportError(
        "llama_index.llms.selfextend needs LlamaIndex, which is not installed; "
        "install it with: pip install 'selfextend-rag[llama-index]'"
    ) from error

__all__: list[str] = []
