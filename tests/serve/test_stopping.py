"""A client that goes away ends the model's work within a chunk, whatever it asked for."""

from __future__ import annotations

import http.client
import json
import threading
import time

import pytest

from selfextend_rag.serve import ServerSettings, create_app
from tests.serve.conftest import Listening
from tests.serve.test_chat import about
from tests.serve.test_leaving import idle, until

LONG = 400  # tokens at least of a forward that counts: the text is read in one chunk


@pytest.fixture(scope="module")
def server(llm):
    settings = ServerSettings(model_name="bundled")
    with Listening(create_app(llm, settings, web=True)) as listening:
        yield listening


class Chunk:
    """A forward over many tokens, which pauses in its first layers until the client has left."""

    def __init__(self, model):
        self.begun, self.left, self.ended = (threading.Event() for _ in range(3))
        self._hooks = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, with_kwargs=True),
            model.model.layers[1].register_forward_pre_hook(self._pause),
        ]

    def close(self):
        self.left.set()
        for hook in self._hooks:
            hook.remove()

    def _begin(self, _, args, given):
        if given["input_ids"].shape[1] >= LONG:
            self.begun.set()

    def _end(self, _, args, given, output):
        if given["input_ids"].shape[1] >= LONG:
            self.ended.set()

    def _pause(self, *_):
        if self.begun.is_set() and not self.left.is_set():
            assert self.left.wait(60)
            time.sleep(0.5)  # in which the server hears of it


@pytest.fixture
def chunk(llm):
    chunk = Chunk(llm.model)
    yield chunk
    chunk.close()


QUESTION = "Who is the owner?"


def chat(text, **more):
    return "/v1/chat/completions", {"model": "bundled", "messages": text, **more}


REQUESTS = {
    "stream about a file": lambda file, _: chat(about(file, QUESTION), stream=True),
    "answer about a file": lambda file, _: chat(about(file, QUESTION)),
    "answer": lambda _, text: chat([{"role": "user", "content": text}]),
    "completion": lambda _, text: ("/v1/completions", {"model": "bundled", "prompt": text}),
    "page reads": lambda file, _: ("/app/api/read", {"files": [file]}),
    "page asks": lambda file, _: ("/app/api/ask", {"files": [file], "question": QUESTION}),
    "page compares": lambda file, _: ("/app/api/compare", {"files": [file], "question": QUESTION}),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_client_that_leaves_ends_the_chunk_that_is_being_read(server, chunk, kind):
    text = f"The {kind} is Clara's, and it has two doors. " * 100
    with server.client() as client:
        file = client.post("/v1/files", files={"file": ("barn.txt", text)}).json()["id"]
    path, body = REQUESTS[kind](file, text)
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    assert chunk.begun.wait(60)
    connection.close()
    chunk.left.set()
    until(lambda: idle(server))
    with server.client() as client:  # the model is free, and has not come to the chunk's end
        short = {"model": "bundled", "prompt": "The", "max_tokens": 1}
        assert client.post("/v1/completions", json=short).is_success
    assert not chunk.ended.is_set()
