"""The core's streams as LlamaIndex's responses: whole, in pieces, and both awaited."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from selfextend_rag import TextStream

Respond = Callable[..., Any]
"""Makes a response of the text so far, the new piece, the answer once whole, and a model's name."""


def collected(stream: TextStream, respond: Respond, model: str) -> Any:
    """Return the response to a whole answer."""
    with stream:
        return respond(stream.answer.text, None, stream.answer, model)


async def acollected(stream: TextStream, respond: Respond, model: str) -> Any:
    """Do as ``collected``, with the event loop free."""
    async with stream:
        answer = await stream.aanswer()
    return respond(answer.text, None, answer, model)


def pieces(stream: TextStream, respond: Respond, model: str) -> Generator[Any, None, None]:
    """Yield a response for each piece, and one with the figures when the answer is whole."""
    text = ""
    with stream:
        for piece in stream:
            text += piece
            yield respond(text, piece, None, model)
        yield respond(stream.answer.text, "", stream.answer, model)


async def apieces(stream: TextStream, respond: Respond, model: str) -> AsyncGenerator[Any, None]:
    """Do as ``pieces``, with the event loop free; ending early ends the work."""
    text = ""
    async with stream:
        async for piece in stream:
            text += piece
            yield respond(text, piece, None, model)
        answer = await stream.aanswer()
        yield respond(answer.text, "", answer, model)
