"""A conversation about documents that were read once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any, Protocol

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.chat_engine.types import (
    AgentChatResponse,
    BaseChatEngine,
    StreamingAgentChatResponse,
)
from llama_index.core.schema import NodeWithScore


class _Reader(Protocol):
    """What a conversation needs of a query engine."""

    def chat_stream(
        self, messages: Sequence[ChatMessage]
    ) -> Generator[ChatResponse, None, None]: ...
    async def achat_stream(
        self, messages: Sequence[ChatMessage]
    ) -> AsyncGenerator[ChatResponse, None]: ...
    def sources(self, raw: Mapping[str, Any]) -> list[NodeWithScore]: ...


class FullDocumentChatEngine(BaseChatEngine):
    """Answers in a conversation about the documents of a `FullDocumentQueryEngine`.

    The documents are not read again. A turn becomes part of the history once it is whole; nothing
    of the history is dropped, so a conversation that has outgrown the room left by the documents
    ends in `ContextBudgetExceeded`: ``reset``, or read with a larger ``question_reserve``.

    Args:
        reader: the query engine.
        chat_history: what was said before.
    """

    def __init__(self, reader: _Reader, chat_history: Sequence[ChatMessage] | None = None) -> None:
        self._reader = reader
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
    ) -> StreamingAgentChatResponse:
        """Do as ``chat``, piece by piece, by ``response_gen``."""
        said = self._said(message, chat_history)
        turn = _Turn(self, said)
        return turn.response(chat_stream=turn.followed(self._reader.chat_stream(said)))

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
    ) -> StreamingAgentChatResponse:
        """Do as ``stream_chat``, by ``async_response_gen()``, with the event loop free."""
        said = self._said(message, chat_history)
        turn = _Turn(self, said)
        pieces = await self._reader.achat_stream(said)
        return turn.response(achat_stream=turn.afollowed(pieces))

    def _said(self, message: str, chat_history: Sequence[ChatMessage] | None) -> list[ChatMessage]:
        if chat_history is not None:
            self._history = list(chat_history)
        return [*self._history, ChatMessage(role=MessageRole.USER, content=message)]


class _Turn:
    """One answer on its way: what becomes of it when it is whole."""

    def __init__(self, engine: FullDocumentChatEngine, said: list[ChatMessage]) -> None:
        self._engine = engine
        self._said = said
        self._nodes: list[NodeWithScore] = []

    def response(self, **streams: Any) -> StreamingAgentChatResponse:
        return StreamingAgentChatResponse(
            source_nodes=self._nodes, is_writing_to_memory=False, **streams
        )

    def followed(
        self, pieces: Generator[ChatResponse, None, None]
    ) -> Generator[ChatResponse, None, None]:
        for piece in pieces:
            yield piece
            self._finish(piece)

    async def afollowed(
        self, pieces: AsyncGenerator[ChatResponse, None]
    ) -> AsyncGenerator[ChatResponse, None]:
        async for piece in pieces:
            yield piece
            self._finish(piece)

    def _finish(self, piece: ChatResponse) -> None:
        if piece.raw is not None:
            self._nodes += self._engine._reader.sources(piece.raw)
            self._engine._history = [*self._said, piece.message]


def _whole(streamed: StreamingAgentChatResponse) -> AgentChatResponse:
    return AgentChatResponse(response=streamed.response, source_nodes=streamed.source_nodes)
