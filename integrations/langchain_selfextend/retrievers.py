"""A retriever of whole documents, where a vector store's would give passages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables.config import run_in_executor
from pydantic import ConfigDict, Field

from langchain_selfextend.documents import core_document, parents_of, whole_documents
from langchain_selfextend.settings import core_llm, overflow_of_the_framework
from selfextend_rag import frameworks, word_relevance


class FullDocumentRetriever(BaseRetriever):
    """Gives whole documents, in the order they were given in, whatever the question.

    The order does not change, so a model that reads them for one question has read them for the
    next.

    Setup:
        ``pip install 'selfextend-rag[langchain]'``.

    Construct:
        .. code-block:: python

            from langchain_core.documents import Document
            from langchain_selfextend import ChatSelfExtend, FullDocumentRetriever

            handbook = Document("Travel is approved by the dean.", metadata={"source": "handbook"})
            retriever = FullDocumentRetriever(documents=[handbook])

    Invoke:
        .. code-block:: python

            (document,) = retriever.invoke("Who approves travel?")

    With ``llm`` it says at once, and not only when the model is called, that documents and question
    do not fit: `ContextWindowExceeded`. With ``overflow="rank"`` it keeps the most relevant whole
    documents that fit, and ``metadata["left_out"]`` of each names the others. With ``retriever``,
    it gives the whole documents that another retriever's hits come from.
    """

    documents: list[Document] = Field(default_factory=list)
    """The whole documents."""
    retriever: BaseRetriever | None = None
    """Whose hits are replaced by the whole ``documents`` they come from."""
    llm: object = Field(default=None, exclude=True, repr=False)
    """The model that will read them: a `ChatSelfExtend`, `SelfExtendLLM` or `LongContextLLM`."""
    overflow: Literal["error", "rank"] = "error"
    """What to do when they do not fit ``llm``."""
    k: int | None = Field(default=None, ge=1)
    """The most documents to give, the most relevant ones; all by default."""
    embeddings: Embeddings | None = Field(default=None, exclude=True, repr=False)
    """What to rank by; by default BM25 of the words."""
    source_key: str = "source"
    """The metadata that a passage shares with its whole document."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def model_post_init(self, context: object, /) -> None:
        """Check that the parts go together."""
        super().model_post_init(context)
        if not self.documents:
            raise ValueError("there are no documents; give documents=, or use from_loaders")
        if self.overflow == "rank" and self.llm is None:
            raise ValueError('overflow="rank" needs to know how much fits; give llm= too')

    @classmethod
    def from_loaders(
        cls,
        loaders: BaseLoader | Iterable[BaseLoader],
        *,
        source_key: str = "source",
        **options: Any,
    ) -> FullDocumentRetriever:
        """Return a retriever of what loaders load, the parts of each source joined.

        Args:
            loaders: one or several; they load now.
            source_key: the metadata that parts of one document share.
            options: more of the constructor.
        """
        several = [loaders] if isinstance(loaders, BaseLoader) else loaders
        parts = [part for loader in several for part in loader.lazy_load()]
        return cls(documents=whole_documents(parts, source_key), source_key=source_key, **options)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        hits = None
        if self.retriever is not None:
            hits = self.retriever.invoke(query, {"callbacks": run_manager.get_child()})
        return self._chosen(query, hits, k)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        hits = None
        if self.retriever is not None:
            hits = await self.retriever.ainvoke(query, {"callbacks": run_manager.get_child()})
        # Ranking and counting tokens keep a processor busy, so not in the event loop.
        return await run_in_executor(None, self._chosen, query, hits, k)

    def _chosen(self, query: str, hits: Sequence[Document] | None, k: int | None) -> list[Document]:
        places = list(range(len(self.documents)))
        if hits is not None:
            places = parents_of(hits, self.documents, self.source_key)

        def ranked(places: Sequence[int]) -> Sequence[int]:
            if hits is not None:  # their order says it
                return places
            texts = [self.documents[place].page_content for place in places]
            return [places[found] for found in by_relevance(query, texts, self.embeddings)]

        most = self.k if k is None else k
        if most is not None and most < len(places):
            places = list(ranked(places)[:most])
        left_out: list[int] = []
        if self.llm is not None and places:
            with overflow_of_the_framework():
                places, left_out = frameworks.fit_or_rank(
                    places,
                    check=lambda chosen: self._plan(query, chosen),
                    size=self._size,
                    rank=ranked if self.overflow == "rank" else None,
                )
        found = [self.documents[place] for place in sorted(places)]
        return self._naming(left_out, found) if left_out else found

    def _plan(self, query: str, places: Sequence[int]) -> None:
        documents = [core_document(self.documents[place]) for place in sorted(places)]
        core_llm(self.llm).plan(documents, question=query or ())

    def _size(self, place: int) -> int:
        document, llm = core_document(self.documents[place]), core_llm(self.llm)
        seen = llm.prompts.picture_tokens(document)
        return seen + llm.count_tokens(f"# {document.title}\n\n{document.text}\n\n")

    def _naming(self, left_out: Sequence[int], found: Sequence[Document]) -> list[Document]:
        """Return documents with what was left out, most relevant first, in their metadata."""
        named = [
            {
                "source": self.documents[place].metadata.get(self.source_key),
                "id": self.documents[place].id,
                "tokens": self._size(place),
            }
            for place in left_out
        ]
        return [
            document.model_copy(update={"metadata": {**document.metadata, "left_out": named}})
            for document in found
        ]


def by_relevance(
    query: str, texts: Sequence[str], embeddings: Embeddings | None = None
) -> list[int]:
    """Return the places of texts, the most relevant first; of equal ones the earlier first.

    What counts is the cosine similarity of the embeddings, or BM25 of the words without them.
    """
    if embeddings is None:
        scores = word_relevance(query, texts)
    else:
        asked = embeddings.embed_query(query)
        scores = [_cosine(asked, vector) for vector in embeddings.embed_documents(list(texts))]
    return sorted(range(len(texts)), key=lambda place: -scores[place])


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = sum(a * a for a in one) * sum(b * b for b in other)
    return float(product / lengths**0.5) if lengths else 0.0
