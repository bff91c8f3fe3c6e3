"""A server answers before its model is there: that it is loading, and to nobody it should not."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading

import httpx
import pytest

from selfextend_rag.serve import ServerSettings, create_app, listen, run
from selfextend_rag.serve.run import Door, Server, server_config

SETTINGS = ServerSettings(model_name="bundled", api_key="secret")
KEY = {"Authorization": "Bearer secret"}


class Loading:
    """A server whose application is made when a test says so, or fails to be."""

    def __init__(self, make):
        self.released, self.there = threading.Event(), threading.Event()
        self.door = Door(SETTINGS)
        self.server = Server(
            server_config(self.door, lifespan="off"), self.door, self._made, self._started
        )
        self._make = make
        self._bound = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._bound.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.run, args=([self._bound],))
        self.thread.start()

    def _made(self):
        assert self.released.wait(60)
        return self._make()

    def _started(self, address):
        assert address == self.url
        self.there.set()

    def close(self):
        self.released.set()
        self.server.should_exit = True
        self.thread.join(60)
        self._bound.close()


@pytest.fixture
def loading(llm, monkeypatch):
    monkeypatch.setattr(Server, "capture_signals", contextlib.nullcontext)  # no main thread
    with contextlib.ExitStack() as stack:

        def begun(make=lambda: create_app(llm, SETTINGS)):
            begun = Loading(make)
            stack.callback(begun.close)
            return begun

        yield begun


def test_it_says_that_it_loads_until_the_model_is_there(loading):
    server = loading()
    with httpx.Client(base_url=server.url, headers=KEY, timeout=60) as client:
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        early = client.post("/v1/chat/completions", json={})
        assert (early.status_code, early.json()["error"]["code"]) == (503, "loading")
        assert int(early.headers["Retry-After"]) > 0
        server.released.set()
        assert server.there.wait(60)
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/v1/models").status_code == 200


def test_nobody_is_let_in_before_that_either(loading):
    with httpx.Client(base_url=loading().url, timeout=60) as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 421
        elsewhere = {**KEY, "Origin": "https://evil.example"}
        assert client.get("/v1/models", headers=elsewhere).status_code == 403


async def test_what_is_small_is_sent_at_once():
    """Each token of a stream, and each page's body behind its headers, waited 40 ms."""
    accepted = asyncio.Queue()

    async def accept(_, writer):
        accepted.put_nowait(writer.get_extra_info("socket"))
        writer.close()

    bound = listen("127.0.0.1", 0)
    async with await asyncio.start_server(accept, sock=bound):
        _, writer = await asyncio.open_connection(*bound.getsockname())
        connection = await accepted.get()
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()


def test_it_ends_while_it_loads(loading):
    server = loading()
    server.server.handle_exit(signal.SIGTERM, None)
    server.thread.join(60)
    assert not server.thread.is_alive()
    assert not server.there.is_set()


def test_what_keeps_the_model_from_being_loaded_is_raised(monkeypatch):
    monkeypatch.setattr(Server, "capture_signals", contextlib.nullcontext)

    def make():
        raise ValueError("there are no weights")

    bound = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(ValueError, match="no weights"):
        run(make, bound, SETTINGS, lambda _: None)
    assert bound.fileno() == -1
