"""``/v1/chat/completions`` and ``/v1/completions``: answers, whole or as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from selfextend_rag.serve.api.answering import Answering, begin_chat, begin_text
from selfextend_rag.serve.api.reply import ChatReply, Reply, TextReply
from selfextend_rag.serve.api.requests import ChatRequest, CompletionRequest, Sampling
from selfextend_rag.serve.events import DONE, ModelResponse, Stream, event
from selfextend_rag.serve.metrics import Watch
from selfextend_rag.serve.state import Served

_Body = TypeVar("_Body", bound=Sampling)


def router(served: Served) -> APIRouter:
    """Return the routes of both kinds of completions."""
    routes = APIRouter()

    async def chat(request: Request) -> Response:
        begin = _answer_by(served, begin_chat, ChatReply)
        return ModelResponse(served, request, ChatRequest, begin)

    async def completions(request: Request) -> Response:
        begin = _answer_by(served, begin_text, TextReply)
        return ModelResponse(served, request, CompletionRequest, begin)

    # As Starlette's: FastAPI would look for their arguments at each request.
    routes.add_route("/v1/chat/completions", chat, ["POST"])
    routes.add_route("/v1/completions", completions, ["POST"])
    return routes


def _answer_by(
    served: Served,
    begin: Callable[[Served, _Body], Coroutine[Any, Any, Answering]],
    reply_by: Callable[[str], Reply],
) -> Callable[[_Body, Watch], Coroutine[Any, Any, Response | Stream]]:
    """Return what answers a request, given how it begins and what writes the replies."""

    async def answer(body: _Body, watch: Watch) -> Response | Stream:
        served.check_model(body.model)
        body.check_fields()
        answering, reply = await begin(served, body), reply_by(served.model_name)
        if body.stream:
            events = _events(served, answering, body, reply, watch)
            return Stream(events, lambda error: event({"error": error.body}), answering.state, DONE)
        async with aclosing(answering.parts()) as parts:
            async for _ in parts:
                watch.speak()
        served.metrics.count(answering.answer.usage)
        return JSONResponse(reply.whole(answering.answer))

    return answer


async def _events(
    served: Served, answering: Answering, body: Sampling, reply: Reply, watch: Watch
) -> AsyncGenerator[bytes, None]:
    """Yield the events of an answer; what a stream begins with goes along with its first text."""
    nothing: dict[str, object] = {"usage": None} if body.wants_usage else {}
    first = reply.first()
    begun = b"" if first is None else event(first | nothing)
    async with aclosing(answering.parts()) as parts:
        async for part in parts:
            watch.speak()
            yield begun + event(reply.part(part) | nothing)
            begun = b""
    usage = answering.answer.usage
    served.metrics.count(usage)
    yield begun + event(reply.last(answering.answer) | nothing)
    if body.wants_usage:
        yield event(reply.usage(usage))
