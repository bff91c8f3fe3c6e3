"""Runs the server on uvicorn: it answers while the model is loaded, and lets answers end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from selfextend_rag.serve.bodies import Bodies
from selfextend_rag.serve.errors import loading
from selfextend_rag.serve.guard import Guard
from selfextend_rag.serve.settings import ServerSettings

_LAST_WORDS_SECONDS = 5  # for streams to send how they ended
_SECONDS_BETWEEN_LOOKS = 0.1


class Door:
    """Passes requests on to an application, and says that it is loading until there is one.

    Args:
        settings: of the application to come.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.app: FastAPI | None = None
        bodies = Bodies(settings.max_body_bytes, settings.max_bodies_bytes)
        self._before: ASGIApp = Guard(_loading, settings, bodies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await (self.app or self._before)(scope, receive, send)


async def _loading(scope: Scope, receive: Receive, send: Send) -> None:
    response = loading().response()
    if scope["path"] == "/health":
        response = JSONResponse({"status": "loading"}, response.status_code)
    await response(scope, receive, send)


class Server(uvicorn.Server):
    """Has its application made while it answers; lets answers end when it stops, then ends them.

    Args:
        config: its application is the door.
        door: opened once the application is made.
        make: makes the application, in a thread.
        on_start: called with the address then.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        door: Door,
        make: Callable[[], FastAPI],
        on_start: Callable[[str], None],
    ) -> None:
        super().__init__(config)
        self.fault: BaseException | None = None
        self._door, self._make, self._on_start = door, make, on_start
        self._opening: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as what ends the server; it was asked to, so that is no error."""
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and to make the application."""
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self._opening = asyncio.ensure_future(self._open(f"http://{shown}:{port}"))

    async def _open(self, address: str) -> None:
        """Open the door, or stop where that fails; `fault` says why."""
        try:
            self._door.app = await asyncio.wrap_future(_in_daemon(self._make))
            self._on_start(address)
        except Exception as error:  # noqa: BLE001 - raised by `run`, once the server has ended
            self.fault, self.should_exit = error, True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running answers end, as long as the settings say, or until Ctrl-C comes again."""
        if self._opening is not None:
            self._opening.cancel()  # of no effect if it is done
        if self._door.app is not None:
            await self._let_answers_end(self._door.app)
        await super().shutdown(sockets)

    async def _let_answers_end(self, app: FastAPI) -> None:
        served = app.state.served
        closing = asyncio.ensure_future(served.admission.close(served.settings.shutdown_seconds))
        while not (closing.done() or self.force_exit):
            await asyncio.wait({closing}, timeout=_SECONDS_BETWEEN_LOOKS)
        served.admission.ended.set()


def _in_daemon(make: Callable[[], FastAPI]) -> Future[FastAPI]:
    """Return what is made in a thread that a program which ends does not wait for."""
    future: Future[FastAPI] = Future()

    def work() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(make())
        except BaseException as error:  # noqa: BLE001 - is raised where the result is awaited
            future.set_exception(error)

    Thread(target=work, name="selfextend-rag-loading", daemon=True).start()
    return future


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, to be given to `run`.

    Args:
        host: name or address to listen on.
        port: 0 for one that is free.

    Raises:
        OSError: it can't be listened on.
    """
    # Bound here: uvicorn ends the program where it can't listen.
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    bound = socket.create_server((host, port), family=family)
    # asyncio sends at once (TCP_NODELAY) where a socket names its protocol. This one does not, and
    # each small write behind another waited 40 ms for the client's acknowledgement.
    return socket.socket(bound.family, bound.type, socket.IPPROTO_TCP, bound.detach())


def run(
    make: Callable[[], FastAPI],
    bound: socket.socket,
    settings: ServerSettings,
    on_start: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; ``/health`` and all else answer 503 until the model is there.

    Args:
        make: loads the model and returns what `create_app` makes of it; run in a thread.
        bound: made by `listen`; closed here.
        settings: those that the application will have.
        on_start: called with the address, once the application is there.

    Raises:
        Exception: what ``make`` or ``on_start`` raised.
    """
    door = Door(settings)
    server = Server(server_config(door, lifespan="off"), door, make, on_start)
    with bound:
        server.run([bound])
    if server.fault is not None:
        raise server.fault


def server_config(app: ASGIApp, **more: Any) -> uvicorn.Config:
    """Return how uvicorn runs the server; ``more`` is what only a test or benchmark decides."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_LAST_WORDS_SECONDS,
        **more,
    )
