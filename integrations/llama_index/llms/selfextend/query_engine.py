"""A query engine whose model has read the documents whole; each question starts from there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from llama_index.llms.selfextend.base import SelfExtendLLM
from llama_index.llms.selfextend.chat_engine import FullDocumentChatEngine
from llama_index.llms.selfextend.documents import (
    core_document,
    framework_document,
    source_nodes,
)
from llama_index.llms.selfextend.whole import selfextend_llm
from selfextend_rag import Reading


class FullDocumentQueryEngine(BaseQueryEngine):
    """Answers questions over documents that were read once, whole.

    The ``source_nodes`` of a response are the passages that the answer rests on, with
    ``start_char_idx``, ``end_char_idx`` and a score; its ``metadata`` has the ``plan`` that was
    chosen, the ``usage`` and the ``finish_reason``. Of a streaming response, they are there once
    the stream has ended.

    Construct:
        .. code-block:: python

            from llama_index.core import Document
            from llama_index.llms.selfextend import FullDocumentQueryEngine, SelfExtendLLM

            handbook = Document(text="Travel is approved by the dean.", id_="handbook")
            engine = FullDocumentQueryEngine.from_documents(
                [handbook], llm=SelfExtendLLM.bundled()
            )

    Query:
        .. code-block:: python

            response = engine.query("Who approves travel?")
            print(response, response.source_nodes, response.metadata["plan"])

    Chat:
        .. code-block:: python

            print(engine.as_chat_engine().chat("Who approves travel?"))

    Args:
        llm: the model that has read the documents.
        reading: what it has read; such as from ``LongContextLLM.load``.
        documents: the documents of LlamaIndex that were read, whose metadata the sources get; by
            default made from those of the reading.
        streaming: ``query`` gives a `StreamingResponse`, ``aquery`` an `AsyncStreamingResponse`.
        callback_manager: by default that of the model.
        options: of the answers, such as ``max_tokens``.
    """

    def __init__(
        self,
        llm: SelfExtendLLM,
        reading: Reading,
        documents: Sequence[BaseNode] = (),
        *,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> None:
        super().__init__(callback_manager or llm.callback_manager)
        self._reader = llm.over(reading)
        self._reader.callback_manager = self.callback_manager
        self._reading = reading
        known = documents or [framework_document(found) for found in reading.documents]
        self._documents = {document.node_id: document for document in known}
        self._streaming = streaming
        self._options = options

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[BaseNode],
        llm: SelfExtendLLM | None = None,
        *,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        question_reserve: int | None = None,
        progress: Any = None,
        cancelled: Any = None,
        **options: Any,
    ) -> FullDocumentQueryEngine:
        """Read documents and return the engine.

        Args:
            documents: what to read, in this order.
            llm: a `SelfExtendLLM`; by default ``Settings.llm``.
            streaming: answers come piece by piece.
            callback_manager: by default that of the model.
            question_reserve: tokens to keep free for a question, or for a whole conversation.
            progress: called with tokens done and tokens to do, after each chunk.
            cancelled: an event or function that ends the reading between two chunks.
            options: of the answers; ``max_tokens`` is kept free for them.

        Raises:
            ContextBudgetExceeded: documents, question and answer do not fit; nothing was read.
            DocumentError: a document has no text.
        """
        model = selfextend_llm(llm)
        reading = model.core.read(
            [core_document(document) for document in documents],
            max_new_tokens=_room(model, options),
            question_reserve=question_reserve,
            progress=progress,
            cancelled=cancelled,
        )
        made = {"streaming": streaming, "callback_manager": callback_manager, **options}
        return cls(model, reading, documents, **made)

    @classmethod
    async def afrom_documents(
        cls,
        documents: Sequence[BaseNode],
        llm: SelfExtendLLM | None = None,
        *,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        question_reserve: int | None = None,
        progress: Any = None,
        cancelled: Any = None,
        **options: Any,
    ) -> FullDocumentQueryEngine:
        """Do as ``from_documents``, with the event loop free; ``cancelled`` is an event."""
        model = selfextend_llm(llm)
        reading = await model.core.aread(
            [core_document(document) for document in documents],
            max_new_tokens=_room(model, options),
            question_reserve=question_reserve,
            progress=progress,
            cancelled=cancelled,
        )
        made = {"streaming": streaming, "callback_manager": callback_manager, **options}
        return cls(model, reading, documents, **made)

    @property
    def reading(self) -> Reading:
        """Return what was read, to be saved or asked directly."""
        return self._reading

    def as_chat_engine(
        self, chat_history: Sequence[ChatMessage] | None = None
    ) -> FullDocumentChatEngine:
        """Return an engine for a conversation about the same reading.

        Args:
            chat_history: what was said before.
        """
        return FullDocumentChatEngine(self, chat_history)

    def chat_stream(self, messages: Sequence[ChatMessage]) -> Generator[ChatResponse, None, None]:
        """Return the answer to a conversation about the documents, piece by piece."""
        return self._reader.stream_chat(messages, **self._options)

    async def achat_stream(
        self, messages: Sequence[ChatMessage]
    ) -> AsyncGenerator[ChatResponse, None]:
        """Do as ``chat_stream``, with the event loop free."""
        return await self._reader.astream_chat(messages, **self._options)

    def sources(self, raw: Mapping[str, Any]) -> list[NodeWithScore]:
        """Return the passages that a response with this ``raw`` rests on."""
        return source_nodes(raw["evidence"], self._documents)

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        question = query_bundle.query_str
        with self.callback_manager.event(
            CBEventType.QUERY, payload={EventPayload.QUERY_STR: question}
        ) as event:
            pieces = self._reader.stream_complete(question, formatted=True, **self._options)
            response: RESPONSE_TYPE = self._streamed(pieces)
            if not self._streaming:
                assert isinstance(response, StreamingResponse)
                response = response.get_response()
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        question = query_bundle.query_str
        with self.callback_manager.event(
            CBEventType.QUERY, payload={EventPayload.QUERY_STR: question}
        ) as event:
            pieces = await self._reader.astream_complete(question, formatted=True, **self._options)
            response: RESPONSE_TYPE = self._astreamed(pieces)
            if not self._streaming:
                assert isinstance(response, AsyncStreamingResponse)
                response = await response.get_response()
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    def _streamed(self, pieces: Generator[CompletionResponse, None, None]) -> StreamingResponse:
        nodes: list[NodeWithScore] = []
        metadata = self._metadata()

        def texts() -> Generator[str, None, None]:
            for piece in pieces:
                if piece.delta:
                    yield piece.delta
                self._finish(piece, nodes, metadata)

        return StreamingResponse(texts(), source_nodes=nodes, metadata=metadata)

    def _astreamed(
        self, pieces: AsyncGenerator[CompletionResponse, None]
    ) -> AsyncStreamingResponse:
        nodes: list[NodeWithScore] = []
        metadata = self._metadata()

        async def texts() -> AsyncGenerator[str, None]:
            async for piece in pieces:
                if piece.delta:
                    yield piece.delta
                self._finish(piece, nodes, metadata)

        return AsyncStreamingResponse(texts(), source_nodes=nodes, metadata=metadata)

    def _finish(
        self, piece: CompletionResponse, nodes: list[NodeWithScore], metadata: dict[str, Any]
    ) -> None:
        """Fill in what is known once the answer is whole, where the response keeps it."""
        if piece.raw is None:
            return
        nodes += self.sources(piece.raw)
        metadata |= {name: piece.raw[name] for name in ("plan", "usage", "finish_reason")}

    def _metadata(self) -> dict[str, Any]:
        return {"plan": self._reading.plan.to_dict()}

    def _get_prompt_modules(self) -> dict[str, Any]:
        return {}


def _room(llm: SelfExtendLLM, options: Mapping[str, Any]) -> int | None:
    for name in ("max_new_tokens", "max_tokens"):
        if options.get(name) is not None:
            return options[name]
    return llm.max_new_tokens
