"""``/v1/chat/completions`` and ``/v1/completions``: answers, whole or as they come."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from selfextend_rag.serve.answering import Answering, begin_chat, begin_text
from selfextend_rag.serve.errors import api_error
from selfextend_rag.serve.events import (
    DONE,
    EventStream,
    Gone,
    comment,
    event,
    while_connected,
    with_signs,
)
from selfextend_rag.serve.metrics import Watch
from selfextend_rag.serve.reply import ChatReply, Reply, TextReply
from selfextend_rag.serve.requests import ChatRequest, CompletionRequest, Sampling
from selfextend_rag.serve.state import Served

CLIENT_CLOSED = 499  # nobody receives it; figures and the log of requests show it

_log = logging.getLogger(__name__)


def router(served: Served) -> APIRouter:
    """Return the routes of both kinds of completions."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        reply = ChatReply(served.model_name)
        return await _respond(served, request, body, begin_chat(served, body), reply)

    @routes.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        reply = TextReply(served.model_name)
        return await _respond(served, request, body, begin_text(served, body), reply)

    return routes


async def _respond(
    served: Served,
    request: Request,
    body: Sampling,
    beginning: Coroutine[Any, Any, Answering],
    reply: Reply,
) -> Response:
    watch = Watch(served.metrics, request.url.path)
    ended = served.admission.ended
    with ExitStack() as stack:
        stack.callback(beginning.close)  # of no effect once it was awaited
        try:
            served.check_model(body.model)
            body.check_fields()
            stack.enter_context(served.admission.request())
            if not body.stream:
                answered = _answered(served, beginning, reply, watch)
                return await while_connected(request.receive, answered, ended)
            answering = await while_connected(request.receive, beginning, ended)
        except Gone:
            watch.end(CLIENT_CLOSED)
            return Response(status_code=CLIENT_CLOSED)
        except Exception as error:  # noqa: BLE001 - in the API's form, and logged if it is ours
            return failed(error, watch)
        events = _events(served, answering, body, reply, watch)
        return EventStream(events, stack.pop_all().close)


async def _answered(
    served: Served, beginning: Coroutine[Any, Any, Answering], reply: Reply, watch: Watch
) -> Response:
    """Return the whole answer."""
    answering = await beginning
    async with aclosing(answering.parts()) as parts:
        async for _ in parts:
            watch.speak()
    assert answering.answer is not None  # all parts were taken
    served.metrics.count(answering.answer.usage)
    watch.end(200)
    return JSONResponse(reply.whole(answering.answer))


async def _events(
    served: Served, answering: Answering, body: Sampling, reply: Reply, watch: Watch
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream; an error is one too, since the status is sent by then."""
    status = CLIENT_CLOSED
    try:
        if (first := reply.first()) is not None:
            yield event(first)
        parts = with_signs(answering.parts(), served.admission.ended)
        async with aclosing(parts):
            async for part in parts:
                if part is None:
                    yield comment(_waiting(answering))
                    continue
                watch.speak()
                yield event(reply.part(part))
        assert answering.answer is not None  # all parts were taken
        served.metrics.count(answering.answer.usage)
        yield event(reply.last(answering.answer))
        if body.wants_usage:
            yield event(reply.usage(answering.answer.usage))
        status = 200
    except Exception as error:  # noqa: BLE001 - in the API's form, and logged if it is ours
        known = api_error(error)
        status = known.status
        log_fault(status, error)
        yield event({"error": known.body})
    finally:
        watch.end(status)
    yield DONE


def _waiting(answering: Answering) -> str:
    done, total = answering.reading
    return f"read {done} of {total} tokens" if total else "waiting"


def failed(error: Exception, watch: Watch) -> Response:
    """Return the answer to a request that failed before anything of it was sent."""
    known = api_error(error)
    watch.end(known.status)
    log_fault(known.status, error)
    return known.response()


def log_fault(status: int, error: Exception) -> None:
    """Log what is no fault of the client, with where it came from."""
    if status == 500:
        _log.error("a request failed", exc_info=error)
