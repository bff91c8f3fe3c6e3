"""Engines whose model has read the documents whole; each question starts from there."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
)
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.chat_engine.types import (
    AgentChatResponse,
    BaseChatEngine,
    StreamingAgentChatResponse,
)
from llama_index.core.instrumentation.events.chat_engine import (
    StreamChatDeltaReceivedEvent,
    StreamChatEndEvent,
    StreamChatStartEvent,
)
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher

from llama_index.llms.selfextend.base import SelfExtendLLM
from llama_index.llms.selfextend.documents import (
    core_document,
    framework_document,
    selfextend_llm,
    source_nodes,
)
from llama_index.llms.selfextend.messages import JsonObject
from selfextend_rag import BaseReading, Document

_dispatcher = get_dispatcher(__name__)
_FIGURES = ("plan", "usage", "finish_reason")


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
        reading: BaseReading,
        documents: Sequence[BaseNode] = (),
        *,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> None:
        super().__init__(callback_manager or llm.callback_manager)
        self._llm = llm.over(reading)
        self._llm.callback_manager = self.callback_manager
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
        question_reserve: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        cancelled: threading.Event | Callable[[], bool] | None = None,
        **options: Any,
    ) -> FullDocumentQueryEngine:
        """Read documents and return the engine.

        Args:
            documents: what to read, in this order.
            llm: a `SelfExtendLLM`; by default ``Settings.llm``.
            question_reserve: tokens to keep free for a question, or for a whole conversation.
            progress: called with tokens done and tokens to do, after each chunk.
            cancelled: an event or function that ends the reading between two chunks.
            options: ``streaming`` and ``callback_manager`` of the engine, and options of the
                answers; ``max_tokens`` is kept free for them.

        Raises:
            ContextBudgetExceeded: documents, question and answer do not fit; nothing was read.
            DocumentError: a document has no text.
        """
        model = selfextend_llm(llm)
        reading = model.core.read(
            [core_document(document) for document in documents],
            max_new_tokens=_answer_tokens(model, options),
            question_reserve=question_reserve,
            progress=progress,
            cancelled=cancelled,
        )
        return cls(model, reading, documents, **options)

    @classmethod
    async def afrom_documents(
        cls,
        documents: Sequence[BaseNode],
        llm: SelfExtendLLM | None = None,
        *,
        question_reserve: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        cancelled: threading.Event | None = None,
        **options: Any,
    ) -> FullDocumentQueryEngine:
        """Do as ``from_documents``, with the event loop free; ``cancelled`` is an event."""
        model = selfextend_llm(llm)
        reading = await model.core.aread(
            [core_document(document) for document in documents],
            max_new_tokens=_answer_tokens(model, options),
            question_reserve=question_reserve,
            progress=progress,
            cancelled=cancelled,
        )
        return cls(model, reading, documents, **options)

    @property
    def reading(self) -> BaseReading:
        """Return what was read, to be saved or asked directly."""
        return self._reading

    def as_chat_engine(
        self, chat_history: Sequence[ChatMessage] | None = None
    ) -> FullDocumentChatEngine:
        """Return an engine for a conversation about what was read, after what was said before."""
        return FullDocumentChatEngine(self, chat_history)

    def sources(self, raw: JsonObject) -> list[NodeWithScore]:
        """Return the passages that a response with this ``raw`` rests on."""
        return source_nodes(raw["evidence"], self._documents)

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        question = query_bundle.query_str
        with self.callback_manager.event(
            CBEventType.QUERY, payload={EventPayload.QUERY_STR: question}
        ) as event:
            answer = self._llm.stream_complete(question, **self._options)
            streamed = self._streamed(answer)
            response = streamed if self._streaming else streamed.get_response()
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        question = query_bundle.query_str
        with self.callback_manager.event(
            CBEventType.QUERY, payload={EventPayload.QUERY_STR: question}
        ) as event:
            answer = await self._llm.astream_complete(question, **self._options)
            streamed = self._astreamed(answer)
            response = streamed if self._streaming else await streamed.get_response()
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    def _streamed(self, answer: Generator[CompletionResponse, None, None]) -> StreamingResponse:
        nodes, metadata = list[NodeWithScore](), {"plan": self._reading.plan.to_dict()}

        def texts() -> Generator[str, None, None]:
            for part in answer:
                if part.delta:
                    yield part.delta
                self._finish(part, nodes, metadata)

        return StreamingResponse(texts(), source_nodes=nodes, metadata=metadata)

    def _astreamed(
        self, answer: AsyncGenerator[CompletionResponse, None]
    ) -> AsyncStreamingResponse:
        nodes, metadata = list[NodeWithScore](), {"plan": self._reading.plan.to_dict()}

        async def texts() -> AsyncGenerator[str, None]:
            async for part in answer:
                if part.delta:
                    yield part.delta
                self._finish(part, nodes, metadata)

        return AsyncStreamingResponse(texts(), source_nodes=nodes, metadata=metadata)

    def _finish(
        self,
        part: CompletionResponse | ChatResponse,
        nodes: list[NodeWithScore],
        metadata: JsonObject,
    ) -> None:
        """Fill in what is known once the answer is whole, where the response keeps it."""
        if part.raw is not None:
            nodes += self.sources(part.raw)
            metadata |= {name: part.raw[name] for name in _FIGURES}

    def __copy__(self) -> FullDocumentQueryEngine:
        """Return a copy on the same reading, as a deep copy is too."""
        copied = object.__new__(type(self))
        copied.__dict__ |= self.__dict__
        return copied

    def __deepcopy__(self, memo: object) -> FullDocumentQueryEngine:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it is made of, from a model made by name; the documents are read again."""
        plan, read = self._reading.plan, list(self._reading.documents)
        space = {"question_reserve": plan.reserve_tokens, "turns": plan.turns}
        made = list(self._documents.values()), self._streaming, self._options
        return _read_again, (
            self._llm.over(None), read, {"max_new_tokens": plan.max_new_tokens, **space}, *made,
        )  # fmt: skip

    def _get_prompt_modules(self) -> JsonObject:
        return {}


def _read_again(
    llm: SelfExtendLLM,
    read: Sequence[Document],
    space: JsonObject,
    documents: Sequence[BaseNode],
    streaming: bool,
    options: JsonObject,
) -> FullDocumentQueryEngine:
    reading = llm.core.read(read, **space)
    return FullDocumentQueryEngine(llm, reading, documents, streaming=streaming, **options)


@dataclass
class FullDocumentChatResponse(StreamingAgentChatResponse):
    """A streamed answer; ``metadata`` has plan, usage and finish reason once it has ended."""

    metadata: JsonObject = field(default_factory=dict)


class FullDocumentChatEngine(BaseChatEngine):
    """Answers in a conversation about the documents of a `FullDocumentQueryEngine`.

    The documents are not read again. A turn becomes part of the history once it is whole; nothing
    of the history is dropped, so a conversation that has outgrown the space left by the documents
    ends in `ContextBudgetExceeded`: ``reset``, or read with a larger ``question_reserve``.

    Args:
        reader: the query engine.
        chat_history: what was said before.
    """

    def __init__(
        self, reader: FullDocumentQueryEngine, chat_history: Sequence[ChatMessage] | None = None
    ) -> None:
        self._engine = reader
        self._history = list(chat_history or [])

    @property
    def chat_history(self) -> list[ChatMessage]:
        """Return what was said so far."""
        return list(self._history)

    def reset(self) -> None:
        """Forget the conversation; the documents stay read."""
        self._history = []

    def chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> AgentChatResponse:
        """Return the answer to what is said next.

        Args:
            message: what is said.
            chat_history: what was said before, in place of what is remembered.
        """
        streamed = self.stream_chat(message, chat_history)
        for _ in streamed.response_gen:
            pass
        return _whole(streamed)

    def stream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> FullDocumentChatResponse:
        """Do as ``chat``, part by part, by ``response_gen``."""
        said, found = self._said(message, chat_history), FullDocumentChatResponse()
        answer = self._engine._llm.stream_chat(said, **self._engine._options)

        def followed() -> Generator[ChatResponse, None, None]:
            _dispatcher.event(StreamChatStartEvent())
            for part in answer:
                yield part
                self._finish(part, said, found)

        found.chat_stream, found.is_writing_to_memory = followed(), False
        return found

    async def achat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> AgentChatResponse:
        """Do as ``chat``, with the event loop free."""
        streamed = await self.astream_chat(message, chat_history)
        async for _ in streamed.async_response_gen():
            pass
        return _whole(streamed)

    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> FullDocumentChatResponse:
        """Do as ``stream_chat``, by ``async_response_gen()``, with the event loop free."""
        said, found = self._said(message, chat_history), FullDocumentChatResponse()
        answer = await self._engine._llm.astream_chat(said, **self._engine._options)

        async def followed() -> AsyncGenerator[ChatResponse, None]:
            _dispatcher.event(StreamChatStartEvent())
            async for part in answer:
                yield part
                self._finish(part, said, found)

        found.achat_stream, found.is_writing_to_memory = followed(), False
        return found

    def _said(self, message: str, chat_history: Sequence[ChatMessage] | None) -> list[ChatMessage]:
        if chat_history is not None:
            self._history = list(chat_history)
        return [*self._history, ChatMessage(role=MessageRole.USER, content=message)]

    def _finish(
        self, part: ChatResponse, said: Sequence[ChatMessage], found: FullDocumentChatResponse
    ) -> None:
        """Keep an answer once it is whole; the response has its sources and figures."""
        if part.delta:
            _dispatcher.event(StreamChatDeltaReceivedEvent(delta=part.delta))
        if part.raw is not None:
            _dispatcher.event(StreamChatEndEvent())
            self._engine._finish(part, found.source_nodes, found.metadata)
            self._history = [*said, part.message]


def _whole(streamed: FullDocumentChatResponse) -> AgentChatResponse:
    return AgentChatResponse(
        response=streamed.response,
        source_nodes=streamed.source_nodes,
        metadata=streamed.metadata,
    )


def _answer_tokens(llm: SelfExtendLLM, options: JsonObject) -> int | None:
    given = [options.get(name) for name in ("max_new_tokens", "max_tokens")]
    return next((tokens for tokens in given if tokens is not None), llm.max_new_tokens)
