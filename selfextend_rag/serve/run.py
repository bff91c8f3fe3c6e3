"""Runs the server on uvicorn, and ends it without cutting answers off."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from selfextend_rag.serve.state import Served

_LAST_WORDS_SECONDS = 5  # for streams to send how they ended
_SECONDS_BETWEEN_LOOKS = 0.1


class _Server(uvicorn.Server):
    """Stops in order: lets nothing in, lets answers end for a while, then ends them."""

    def __init__(self, config: uvicorn.Config, served: Served, on_start: Callable[[str], None]):
        super().__init__(config)
        self._served = served
        self._on_start = on_start

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
        """Begin to answer, and say where."""
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self._on_start(f"http://{shown}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running answers end, as long as the settings say, or until Ctrl-C comes again."""
        seconds = self._served.settings.shutdown_seconds
        closing = asyncio.ensure_future(self._served.admission.close(seconds))
        while not (closing.done() or self.force_exit):
            await asyncio.wait({closing}, timeout=_SECONDS_BETWEEN_LOOKS)
        self._served.admission.ended.set()
        await super().shutdown(sockets)


def run(app: FastAPI, host: str, port: int, on_start: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: made by `create_app`.
        host: name or address to listen on.
        port: 0 for one that is free.
        on_start: called with the address, once it is listened on.

    Raises:
        OSError: it can't be listened on.
    """
    # Bound here: uvicorn ends the program where it can't listen.
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.create_server((host, port), family=family) as bound:
        _Server(server_config(app), app.state.served, on_start).run([bound])


def server_config(app: FastAPI, **more: Any) -> uvicorn.Config:
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
