"""A server on the bundled model, listening on a free port of this machine."""

from __future__ import annotations

import contextlib
import threading
import time

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server's libraries are not installed")

import uvicorn

from selfextend_rag.llm import LongContextLLM
from selfextend_rag.serve import ServerSettings, create_app

STORY = (
    "The mill stands by the river. The height of the old mill is 6400. Nobody has lived there "
    "since the flood, and the wheel has not moved for years.\n\nThe name of the miller is Anna."
)


@pytest.fixture(scope="session")
def llm():
    return LongContextLLM.bundled()


class Listening:
    """A server in a thread."""

    def __init__(self, app):
        self.app, self.served = app, app.state.served
        config = uvicorn.Config(app, port=0, log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()

    def client(self, **more):
        return httpx.Client(base_url=self.url, timeout=120, **more)


@pytest.fixture(scope="session")
def listen(llm):
    """Start a server with other settings; it ends with the tests."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            Listening(create_app(llm, ServerSettings(model_name="bundled", **settings)))
        )


@pytest.fixture(scope="session")
def server(listen):
    return listen()


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def story(client):
    """The id of an uploaded file."""
    return client.post("/v1/files", files={"file": ("mill.txt", STORY)}).json()["id"]
