"""Answers that a client may leave: server-sent events, and work that ends with its connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from selfextend_rag.serve.errors import shutting_down

_T = TypeVar("_T")

DONE = b"data: [DONE]\n\n"
SECONDS_BETWEEN_SIGNS = 5.0  # of life, while nothing else is to be sent


class Gone(Exception):
    """The client closed the connection."""


def event(data: Mapping[str, object], name: str | None = None) -> bytes:
    """Return a server-sent event that carries JSON."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def comment(text: str) -> bytes:
    """Return what clients of server-sent events pass over; it keeps a connection open."""
    return f": {' '.join(text.split())}\n\n".encode()


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, _T], ended: asyncio.Event | None = None
) -> _T:
    """Return what work returns; a client that goes away cancels it.

    Args:
        receive: of the request, whose body was received.
        work: is awaited here.
        ended: cancels it too, when it is set.

    Raises:
        Gone: the client went away; the work has ended.
        ApiError: it was ended, as the server shuts down.
    """
    running = asyncio.ensure_future(work)
    reasons: set[asyncio.Future[Any]] = {asyncio.ensure_future(_disconnected(receive))}
    if ended is not None:
        reasons.add(asyncio.ensure_future(ended.wait()))
    try:
        await asyncio.wait({running, *reasons}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        raise shutting_down() if ended is not None and ended.is_set() else Gone
    finally:
        for task in (running, *reasons):
            task.cancel()
        await asyncio.wait({running, *reasons})  # until what they hold is released


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def with_signs(
    parts: AsyncIterator[_T], ended: asyncio.Event, seconds: float = SECONDS_BETWEEN_SIGNS
) -> AsyncGenerator[_T | None, None]:
    """Yield parts as they come, and None whenever none came for some seconds.

    Raises:
        ApiError: ``ended`` was set, as the server shuts down.
    """
    ending = asyncio.ensure_future(ended.wait())
    waiting: set[asyncio.Future[Any]] = {ending}
    try:
        while True:
            coming = asyncio.ensure_future(anext(parts))
            waiting.add(coming)
            while not coming.done():
                done, _ = await asyncio.wait(
                    waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
                )
                if ending.done():
                    raise shutting_down()
                if not done:
                    yield None
            waiting.remove(coming)
            try:
                part = coming.result()
            except StopAsyncIteration:
                return
            yield part
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


class EventStream(Response):
    """A response of server-sent events, which ends what makes them when the client goes away.

    Args:
        events: their bytes; closed in every case.
        on_end: called once, when all is over.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], on_end: Callable[[], object]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"  # proxies pass events on as they come
        self._events = events
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client goes away."""
        try:
            with suppress(Gone):
                await while_connected(receive, self._send(send))
        finally:
            self._on_end()

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            headers = self.raw_headers
            start = {"type": "http.response.start", "status": self.status_code, "headers": headers}
            await send(start)
            async for part in events:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
