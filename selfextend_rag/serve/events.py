"""Answers that use the model: let in, whole or as server-sent events, ended by the client or us."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from selfextend_rag.serve.bodies import received
from selfextend_rag.serve.errors import ApiError, api_error, log_fault, shutting_down
from selfextend_rag.serve.metrics import Watch
from selfextend_rag.serve.state import Served

_T = TypeVar("_T")
_Body = TypeVar("_Body", bound=BaseModel)

DONE = b"data: [DONE]\n\n"
CLIENT_CLOSED = 499  # nobody receives it; figures and the log of requests show it
SECONDS_BETWEEN_SIGNS = 5.0  # of life, while nothing else is to be sent
SECONDS_TO_TAKE = 60.0  # for a client that reads no more; then its place is another's

# Ends of lines for some clients, inside a string of JSON; JSON escapes the others by itself.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}

_log = logging.getLogger(__name__)


class Gone(Exception):
    """The client closed the connection, or takes nothing any more."""


def event(data: Mapping[str, object], name: str | None = None) -> bytes:
    """Return a server-sent event that carries JSON."""
    head = "" if name is None else f"event: {name}\n"
    text = json.dumps(data, ensure_ascii=False).translate(_LINE_ENDS)
    # An answer in JSON may name half of a surrogate pair, which only its escape can be sent as.
    return f"{head}data: {text}\n\n".encode("utf-8", "backslashreplace")


def comment(text: str) -> bytes:
    """Return what clients of server-sent events pass over; it keeps a connection open."""
    return f": {' '.join(text.split())}\n\n".encode()


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer as events.

    Args:
        events: their bytes; closed in every case.
        failure: returns the event of an error, since the status was sent before.
        sign: returns the comment to send while there is nothing else.
        end: what follows the last event, that of an error too.
    """

    events: AsyncGenerator[bytes, None]
    failure: Callable[[ApiError], bytes]
    sign: Callable[[], str] = lambda: "waiting"
    end: bytes = b""


class ModelResponse(Response, Generic[_Body]):
    """A response that uses the model.

    It is let in or sent away, counted, and ended when its client leaves or the server stops: what
    it has begun is cancelled then, and the next request let in once that is over.

    Args:
        served: the server.
        request: its body has not been received.
        form: of the body.
        begin: given the body, checks it and returns the answer, whole or as a stream.
    """

    def __init__(
        self,
        served: Served,
        request: Request,
        form: type[_Body],
        begin: Callable[[_Body, Watch], Coroutine[Any, Any, Response | Stream]],
    ) -> None:
        super().__init__()
        self._served = served
        self._request = request
        self._form = form
        self._begin = begin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive the request and send what came of it."""
        watch = Watch(self._served.metrics, scope["path"])
        try:
            whole = await self._sent_or_whole(receive, send, watch)
        except (Gone, ClientDisconnect):
            watch.end(CLIENT_CLOSED)
            return
        except Exception as error:  # noqa: BLE001 - in the API's form, and logged if it is ours
            known = api_error(error)
            log_fault(_log, known, error)
            whole = known.response()
        except asyncio.CancelledError:
            watch.end(CLIENT_CLOSED)
            raise
        if whole is not None:
            watch.end(whole.status_code)
            await whole(scope, receive, send)

    async def _sent_or_whole(self, receive: Receive, send: Send, watch: Watch) -> Response | None:
        """Return the whole answer, to be sent when the next request is let in; None for a stream.

        Raises:
            Gone: the client left.
            Exception: what is wrong with the request; nothing was sent yet.
        """
        body = await received(self._request, self._form, self._served.settings.max_text_bytes)
        admission = self._served.admission
        with admission.request():
            async with _Connection(receive, admission.ended) as connection:
                made = await connection.result(self._begin(body, watch))
                if isinstance(made, Response):
                    return made
                await _Sender(made, connection, send).run(watch)
                return None


class _Connection:
    """A request's connection, and the time that the server leaves it.

    Args:
        receive: of the request, whose body was received.
        ended: set when the server's time is over.
    """

    def __init__(self, receive: Receive, ended: asyncio.Event) -> None:
        self._receive = receive
        self._ended = ended

    async def __aenter__(self) -> _Connection:
        self._over = asyncio.ensure_future(self._ended.wait())
        self._left = asyncio.ensure_future(self._disconnected())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._over.cancel()
        self._left.cancel()

    async def result(
        self, work: Coroutine[Any, Any, _T], sign: Callable[[], Awaitable[None]] | None = None
    ) -> _T:
        """Return what work returns, or cancel it and wait for its end.

        Args:
            work: is run here.
            sign: called whenever some seconds have gone by.

        Raises:
            ApiError: the server's time is over.
            Gone: the client left.
        """
        running = asyncio.ensure_future(work)
        waited = {running, self._over, self._left}
        seconds = None if sign is None else SECONDS_BETWEEN_SIGNS
        try:
            while True:
                done, _ = await asyncio.wait(
                    waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
                )
                if running in done:
                    return running.result()
                if self._over in done:
                    raise shutting_down()
                if self._left in done:
                    raise Gone
                if sign is not None:
                    await sign()
        finally:
            running.cancel()
            await asyncio.wait({running})  # until what it holds is released
            if not running.cancelled():
                running.exception()  # is known by now; asyncio would report it otherwise

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _Sender:
    """Sends a stream: its events, signs of life between them, and how it ended."""

    def __init__(self, stream: Stream, connection: _Connection, send: Send) -> None:
        self._stream = stream
        self._connection = connection
        self._send = send
        self._sent = False  # anything since the last look
        self._sending = False

    async def run(self, watch: Watch) -> None:
        """Send all of it.

        Raises:
            Gone: the client left.
        """
        status, last = 200, self._stream.end
        async with aclosing(self._stream.events) as events:
            try:
                await self._start()
                await self._connection.result(self._all(events), self._sign)
            except Gone:
                raise
            except Exception as error:  # noqa: BLE001 - as an event, and logged if it is ours
                known = api_error(error)
                log_fault(_log, known, error)
                status, last = known.status, self._stream.failure(known) + last
        watch.end(status)
        await self._put({"type": "http.response.body", "body": last, "more_body": False})

    async def _start(self) -> None:
        headers = (
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # proxies pass events on as they come
        )
        await self._put({"type": "http.response.start", "status": 200, "headers": list(headers)})

    async def _all(self, events: AsyncGenerator[bytes, None]) -> None:
        async for part in events:
            await self._body(part)

    async def _sign(self) -> None:
        if not (self._sent or self._sending):
            await self._body(comment(self._stream.sign()))
        self._sent = False

    async def _body(self, part: bytes) -> None:
        await self._put({"type": "http.response.body", "body": part, "more_body": True})

    async def _put(self, message: dict[str, Any]) -> None:
        self._sending = self._sent = True
        try:
            async with asyncio.timeout(SECONDS_TO_TAKE):
                await self._send(message)
        except TimeoutError:
            raise Gone from None
        finally:
            self._sending = False
