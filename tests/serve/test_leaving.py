"""Clients that go away, too many of them, and a server that is stopped."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from selfextend_rag.engine import Job, worker_of
from selfextend_rag.serve import ServerSettings, create_app
from selfextend_rag.serve.run import Door, Server, server_config
from tests.serve.test_chat import about, events

# Takes many seconds: a text of this length can't end early.
TEXT = {"type": "object", "properties": {"text": {"type": "string", "minLength": 4000}}}
FORM = {"name": "story", "schema": {**TEXT, "required": ["text"]}}
LONG = {
    "model": "bundled",
    "messages": [{"role": "user", "content": "Tell a story."}],
    "max_tokens": 1500,
    "response_format": {"type": "json_schema", "json_schema": FORM},
}


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def idle(server):
    return server.served.admission.admitted == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer(server, stream):
    before = tokens(server)
    with server.client() as client:
        sent = client.build_request("POST", "/v1/chat/completions", json={**LONG, "stream": stream})
        if stream:
            response = client.send(sent, stream=True)
            next(response.iter_lines())
            response.close()
        else:
            sent.extensions["timeout"] = dict.fromkeys(("connect", "read", "write"), 0.3)
            with pytest.raises(httpx.ReadTimeout):
                client.send(sent)
    until(lambda: idle(server))
    assert tokens(server) == before  # it did not come to its end
    with server.client() as client:  # and the model is free
        assert client.post("/v1/chat/completions", json={**LONG, "max_tokens": 1}).is_success


def tokens(server):
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return [line for line in lines if 'kind="completion"' in line]


def test_a_client_that_leaves_ends_the_reading(server):
    text = "The owner of the barn is Clara, and it has two doors. " * 700
    soon = httpx.Timeout(20, read=0.5)
    with server.client() as client:
        file = client.post("/v1/files", files={"file": ("barn.txt", text)}).json()["id"]
        body = {"model": "bundled", "messages": about(file, "Who?"), "stream": True}
        with pytest.raises(httpx.ReadTimeout):  # it is let in, and reads for seconds
            client.post("/v1/chat/completions", json=body, timeout=soon)
        until(lambda: idle(server))
        assert all(kept.names[0].title != "barn" for kept in server.served.readings.all())
        client.delete(f"/v1/files/{file}")


@pytest.fixture
def busy(llm):
    """The model does something else, until the test is over."""
    over = threading.Event()
    job = Job(worker_of(llm.model), lambda is_cancelled: over.wait(60))
    yield
    over.set()
    job.result()


def test_a_client_that_leaves_is_no_longer_waited_for(server, busy):
    with server.client() as client:
        sent = client.build_request("POST", "/v1/chat/completions", json=LONG)
        sent.extensions["timeout"] = dict.fromkeys(("connect", "read", "write"), 0.3)
        with pytest.raises(httpx.ReadTimeout):
            client.send(sent)
    until(lambda: idle(server))


def test_more_than_may_wait_are_sent_away_and_told_when_to_come(listen, busy):
    server = listen(max_waiting=1)
    with server.client() as client:
        streams = [
            client.send(
                client.build_request("POST", "/v1/chat/completions", json={**LONG, "stream": True}),
                stream=True,
            )
            for _ in range(2)
        ]
        refused = client.post("/v1/chat/completions", json=LONG)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        for stream in streams:
            stream.close()
        until(lambda: idle(server))


def test_many_clients_at_once_each_get_their_own_answer(server):
    """A small form of benchmarks/serve_load.py."""
    questions = {f"The code of door {n} is {n}{n}{n}.": str(n) * 3 for n in range(1, 9)}
    wrong = []

    def ask(statement, value):
        prompt = f"{statement}\n\nQuestion: What is the code of the door?"
        body = {"model": "bundled", "messages": [{"role": "user", "content": prompt}]}
        with server.client() as client:
            whole = client.post("/v1/chat/completions", json=body).json()
            streamed = events(client.post("/v1/chat/completions", json={**body, "stream": True}))
        text = whole["choices"][0]["message"]["content"]
        parts = "".join(x["choices"][0]["delta"].get("content", "") for x in streamed)
        if text != parts or any(other in text for other in set(questions.values()) - {value}):
            wrong.append((value, text, parts))

    threads = [threading.Thread(target=ask, args=item) for item in questions.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    until(lambda: idle(server))


@pytest.fixture
def program():
    command = [sys.executable, "-m", "selfextend_rag", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()
        yield process, json.loads(text)["address"]
        process.kill()


def test_ctrl_c_twice_ends_it_at_once(llm, monkeypatch):
    """The second one had no effect before the time for running answers was over."""
    monkeypatch.setattr(Server, "capture_signals", contextlib.nullcontext)  # no main thread
    settings = ServerSettings(model_name="bundled", shutdown_seconds=3600)
    app, door, there = create_app(llm, settings), Door(settings), threading.Event()
    server = Server(server_config(door, lifespan="off"), door, lambda: app, lambda _: there.set())
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        assert there.wait(60)
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1/chat/completions"
        with httpx.stream("POST", url, json={**LONG, "stream": True}, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            for _ in range(2):
                server.handle_exit(signal.SIGINT, None)
                until(app.state.served.admission.closing.is_set)
            data = [line for line in lines if line.startswith("data: ")]
        thread.join(60)
    assert not thread.is_alive()
    assert json.loads(data[-2].removeprefix("data: "))["error"]["code"] == "shutting_down"


def test_sigterm_lets_short_answers_end(program):
    process, address = program
    body = {**LONG, "stream": True, "max_tokens": 40}
    with httpx.stream("POST", f"{address}/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        data = [line for line in lines if line.startswith("data: ")]
    assert data[-1] == "data: [DONE]"
    assert json.loads(data[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert process.wait(30) == 0
