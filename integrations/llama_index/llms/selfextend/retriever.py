"""A retriever of whole documents, where a vector store's would give passages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.default_prompt_selectors import DEFAULT_TEXT_QA_PROMPT_SEL
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from llama_index.llms.selfextend.base import SelfExtendLLM
from llama_index.llms.selfextend.documents import core_document, whole_node
from selfextend_rag import frameworks, word_relevance

_LEFT_OUT = "left_out"


class FullDocumentRetriever(BaseRetriever):
    """Gives whole documents, in the order they were given in, whatever the question.

    The order does not change, so a model that reads them for one question has read them for the
    next. With ``llm`` it says at once, and not only when the model is called, that documents and
    question do not fit: `ContextBudgetExceeded`. With ``overflow="rank"`` it keeps the most
    relevant whole documents that fit, and ``metadata["left_out"]`` of each names the others.

    Construct:
        .. code-block:: python

            from llama_index.core import Document
            from llama_index.llms.selfextend import FullDocumentRetriever

            handbook = Document(text="Travel is approved by the dean.", id_="handbook")
            retriever = FullDocumentRetriever([handbook])

    Retrieve:
        .. code-block:: python

            (found,) = retriever.retrieve("Who approves travel?")

    Args:
        documents: the whole documents.
        retriever: whose hits are replaced by the whole ``documents`` they come from, which is what
            their ``ref_doc_id`` says.
        llm: the model that will read them.
        overflow: what to do when they do not fit ``llm``.
        embed_model: what to rank by; by default the words (BM25), or the order of the hits.
        callback_manager: of the framework.

    Raises:
        ValueError: there are no documents, two have one id, or ranking has no ``llm`` to fit.
    """

    def __init__(
        self,
        documents: Sequence[BaseNode],
        *,
        retriever: BaseRetriever | None = None,
        llm: SelfExtendLLM | None = None,
        overflow: Literal["error", "rank"] = "error",
        embed_model: BaseEmbedding | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        self._documents = {document.node_id: document for document in documents}
        if not documents or len(self._documents) < len(documents):
            raise ValueError(
                f"documents must be at least one and have different ids, got {len(documents)} "
                f"with {len(self._documents)} ids"
            )
        if overflow not in ("error", "rank"):
            raise ValueError(f'overflow must be "error" or "rank", got {overflow!r}')
        if overflow == "rank" and llm is None:
            raise ValueError('overflow="rank" needs to know how much fits; give llm= too')
        self._retriever = retriever
        self._llm = llm
        self._overflow = overflow
        self._embed_model = embed_model

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = None if self._retriever is None else self._retriever.retrieve(query_bundle)
        return self._chosen(query_bundle.query_str, hits)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = None
        if self._retriever is not None:
            hits = await self._retriever.aretrieve(query_bundle)
        # Ranking and counting tokens keep a processor busy, so not in the event loop.
        return await asyncio.to_thread(self._chosen, query_bundle.query_str, hits)

    def _chosen(self, query: str, hits: Sequence[NodeWithScore] | None) -> list[NodeWithScore]:
        scores = dict.fromkeys(self._documents) if hits is None else self._parents(hits)
        kept, left_out = list(scores), list[str]()

        def ranked(names: Sequence[str]) -> Sequence[str]:
            if hits is not None:  # their order says it
                return names
            found = dict(zip(names, self._relevance(query, names), strict=True))
            scores.update(found)
            return sorted(names, key=lambda name: -found[name])

        if self._llm is not None and kept:
            kept, left_out = frameworks.fit_or_rank(
                kept,
                check=lambda names: self._check(query, names),
                size=self._size,
                rank=ranked if self._overflow == "rank" else None,
            )
        return [
            NodeWithScore(node=self._node(name, left_out), score=scores[name])
            for name in self._documents
            if name in kept
        ]

    def _parents(self, hits: Sequence[NodeWithScore]) -> dict[str, float | None]:
        """Return the documents that hits come from, the best first, with their best score."""
        found: dict[str, float | None] = {}
        for hit in hits:
            name = hit.node.ref_doc_id or hit.node.node_id
            if name not in self._documents:
                raise ValueError(
                    f"the hit {hit.node.node_id} comes from document {name}, which is none of the "
                    f"{len(self._documents)} whole documents; give it too"
                )
            known = [score for score in (found.get(name), hit.score) if score is not None]
            found[name] = max(known, default=None)
        return found

    def _text(self, names: Sequence[str]) -> str:
        texts = [
            document.get_content(MetadataMode.LLM)
            for name, document in self._documents.items()
            if name in names
        ]
        return "\n\n".join(texts)

    def _check(self, query: str, names: Sequence[str]) -> None:
        """Make the very prompt that LlamaIndex's default template makes, and plan it."""
        assert self._llm is not None
        chosen = [
            core_document(document) for name, document in self._documents.items() if name in names
        ]
        if any(document.pictures for document in chosen):  # which no template of texts writes
            self._llm.core.plan(chosen, question=query or ())
            return
        self._llm.check_prompt(
            DEFAULT_TEXT_QA_PROMPT_SEL, context_str=self._text(names), query_str=query
        )

    def _size(self, name: str) -> int:
        assert self._llm is not None
        llm = self._llm.core
        seen = llm.prompts.picture_tokens(core_document(self._documents[name]))
        return seen + llm.count_tokens(self._text([name]) + "\n\n")

    def _relevance(self, query: str, names: Sequence[str]) -> list[float]:
        texts = [self._documents[name].get_content(MetadataMode.EMBED) for name in names]
        if self._embed_model is None:
            return word_relevance(query, texts)
        asked = self._embed_model.get_query_embedding(query)
        vectors = self._embed_model.get_text_embedding_batch(texts)
        return [self._embed_model.similarity(asked, vector) for vector in vectors]

    def _node(self, name: str, left_out: Sequence[str]) -> BaseNode:
        node = whole_node(self._documents[name])
        if left_out:
            node.metadata = {**node.metadata, _LEFT_OUT: list(left_out)}
            node.excluded_llm_metadata_keys.append(_LEFT_OUT)
            node.excluded_embed_metadata_keys.append(_LEFT_OUT)
        return node
