"""Work that uses the model for the page: let in like other requests, and ended with its connection.

Events are pairs of a name and JSON values.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from selfextend_rag.serve.chat import CLIENT_CLOSED, failed, log_fault
from selfextend_rag.serve.errors import api_error
from selfextend_rag.serve.events import (
    EventStream,
    Gone,
    comment,
    event,
    while_connected,
    with_signs,
)
from selfextend_rag.serve.metrics import Watch
from selfextend_rag.serve.state import Served

JsonObject = dict[str, Any]
Event = tuple[str, JsonObject]
Events = AsyncGenerator[Event, None]
_T = TypeVar("_T")


async def streamed(
    served: Served, request: Request, beginning: Coroutine[Any, Any, Events]
) -> Response:
    """Return a stream of events; what is refused before its first one is an answer of its own.

    Args:
        served: the server.
        request: it ends with its connection.
        beginning: checks the request and returns the events.
    """
    return await _let_in(
        served,
        request,
        beginning,
        lambda events, watch, end: EventStream(_encoded(served, events, watch), end),
    )


async def answered(
    served: Served, request: Request, work: Coroutine[Any, Any, Response]
) -> Response:
    """Return the response that work makes, unless the client goes away before."""

    def whole(response: Response, watch: Watch, end: Callable[[], object]) -> Response:
        watch.end(response.status_code)
        end()
        return response

    return await _let_in(served, request, work, whole)


async def _let_in(
    served: Served,
    request: Request,
    work: Coroutine[Any, Any, _T],
    respond: Callable[[_T, Watch, Callable[[], object]], Response],
) -> Response:
    watch = Watch(served.metrics, request.url.path)
    with ExitStack() as stack:
        stack.callback(work.close)  # of no effect once it was awaited
        try:
            stack.enter_context(served.admission.request())
            made = await while_connected(request.receive, work, served.admission.ended)
        except Gone:
            watch.end(CLIENT_CLOSED)
            return Response(status_code=CLIENT_CLOSED)
        except Exception as error:  # noqa: BLE001 - in the API's form, and logged if it is ours
            return failed(error, watch)
        return respond(made, watch, stack.pop_all().close)


async def _encoded(served: Served, events: Events, watch: Watch) -> AsyncGenerator[bytes, None]:
    """Yield the events' bytes; an error is one too, since the status is sent by then."""
    status = CLIENT_CLOSED
    try:
        signed = with_signs(events, served.admission.ended)
        async with aclosing(events), aclosing(signed):
            async for each in signed:
                if each is None:
                    yield comment("waiting")
                    continue
                name, data = each
                if name == "text":
                    watch.speak()
                yield event(data, name)
        status = 200
    except Exception as error:  # noqa: BLE001 - in the API's form, and logged if it is ours
        known = api_error(error)
        status = known.status
        log_fault(status, error)
        yield event(known.body, "error")
    finally:
        watch.end(status)
