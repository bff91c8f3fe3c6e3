"""A retriever of whole documents, where a vector store's would give pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.default_prompt_selectors import DEFAULT_TEXT_QA_PROMPT_SEL
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from llama_index.llms.selfextend.base import SelfExtendLLM
from llama_index.llms.selfextend.documents import whole_node
from selfextend_rag import ContextBudgetExceeded, word_relevance

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
        left_out: list[str] = []
        if self._llm is not None and scores:
            scores, left_out = self._fitting(query, scores, ranked=hits is not None)
        return [
            NodeWithScore(node=self._node(name, left_out), score=scores[name])
            for name in self._documents
            if name in scores
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

    def _fitting(
        self, query: str, scores: dict[str, float | None], *, ranked: bool
    ) -> tuple[dict[str, float | None], list[str]]:
        """Return the documents that fit the model beside the question, and the others.

        Raises:
            ContextBudgetExceeded: not all do and that is an error, or none does.
        """
        try:
            self._check(query, scores)
            return scores, []
        except ContextBudgetExceeded:
            if self._overflow == "error":
                raise
        if not ranked:
            scores = self._scored(query, list(scores))
        kept: list[str] = []
        refused: ContextBudgetExceeded | None = None
        for name in scores:
            try:
                self._check(query, [*kept, name])
            except ContextBudgetExceeded as error:
                refused = refused or error
            else:
                kept.append(name)
        if not kept:
            assert refused is not None
            raise refused
        return {name: scores[name] for name in kept}, [name for name in scores if name not in kept]

    def _check(self, query: str, names: Sequence[str] | dict[str, Any]) -> None:
        """Make the very prompt that LlamaIndex's default template makes, and plan it."""
        assert self._llm is not None
        texts = [
            self._documents[name].get_content(MetadataMode.LLM)
            for name in self._documents
            if name in names
        ]
        self._llm.check_prompt(
            DEFAULT_TEXT_QA_PROMPT_SEL, context_str="\n\n".join(texts), query_str=query
        )

    def _scored(self, query: str, names: list[str]) -> dict[str, float | None]:
        """Return scores, the most relevant document first; of equal ones the earlier."""
        texts = [self._documents[name].get_content(MetadataMode.EMBED) for name in names]
        if self._embed_model is None:
            scores = word_relevance(query, texts)
        else:
            asked = self._embed_model.get_query_embedding(query)
            vectors = self._embed_model.get_text_embedding_batch(texts)
            scores = [self._embed_model.similarity(asked, vector) for vector in vectors]
        order = sorted(range(len(names)), key=lambda place: -scores[place])
        return {names[place]: scores[place] for place in order}

    def _node(self, name: str, left_out: Sequence[str]) -> BaseNode:
        node = whole_node(self._documents[name])
        if left_out:
            node.metadata = {**node.metadata, _LEFT_OUT: list(left_out)}
            node.excluded_llm_metadata_keys.append(_LEFT_OUT)
            node.excluded_embed_metadata_keys.append(_LEFT_OUT)
        return node
