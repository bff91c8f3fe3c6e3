"""Bodies of requests: how many bytes and values, one by one and all together, and how soon."""

from __future__ import annotations

import asyncio
import json
import tracemalloc

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request

from selfextend_rag.serve import ServerSettings, bodies
from selfextend_rag.serve.api.requests import ChatRequest
from selfextend_rag.serve.bodies import Bodies, received
from selfextend_rag.serve.errors import ApiError
from tests.serve.test_leaving import until


def sending(*parts):
    """What receives a body in parts, and waits when all were taken."""
    left = list(parts)

    async def receive():
        if not left:
            await asyncio.Event().wait()
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    return receive


async def test_bodies_count_until_their_requests_end():
    counts = Bodies(10, 15)
    with counts.counted(sending(b"12345", b"67890")) as first:
        await first()
        await first()
        assert counts.held == 10
        counts.check(5)
        with pytest.raises(ApiError) as declared:
            counts.check(6)
        with counts.counted(sending(b"1234", b"56")) as second:
            await second()
            with pytest.raises(ApiError) as came:
                await second()  # its length was not declared
        assert counts.held == 10
    assert counts.held == 0
    for error in (declared.value, came.value):
        assert (error.status, error.body["code"]) == (429, "too_much_at_once")
        assert error.body["type"] == "rate_limit_error"
        assert int(error.headers["Retry-After"]) > 0
    with counts.counted(sending(b"12345678901")) as long, pytest.raises(ApiError) as alone:
        await long()
    assert (alone.value.status, counts.held) == (413, 0)


async def test_a_client_that_stops_sending_holds_nothing_for_long(monkeypatch):
    """It kept its bytes from all others for as long as it liked."""
    monkeypatch.setattr(bodies, "SECONDS_TO_SEND", 0.05)
    counts = Bodies(10, 10)

    async def stuck():
        await asyncio.Event().wait()

    with counts.counted(stuck) as receive, pytest.raises(ApiError) as refused:
        await receive()
    assert refused.value.status == 408
    with counts.counted(sending(b"1")) as receive:
        await receive()
        with pytest.raises(TimeoutError):  # a whole body's client may wait for its answer
            await asyncio.wait_for(receive(), 0.2)


def request_of(data):
    headers = [(b"content-type", b"application/json")]
    return Request({"type": "http", "method": "POST", "headers": headers}, sending(data))


def chat_with(content):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}).encode()


async def test_data_of_files_may_be_longer_than_text():
    file = {"type": "file", "file": {"file_data": "QUJD" * 1000}}
    body = await received(request_of(chat_with([file, file])), ChatRequest, 500)
    assert len(body.messages[0]["content"]) == 2
    said = 'a "file_data": "QUJD"' * 1000  # in a text it is escaped, and text
    for content in (said, [{}] * 1000, [{"text": "x" * 600}, file]):
        with pytest.raises(ApiError) as refused:
            await received(request_of(chat_with(content)), ChatRequest, 500)
        assert (refused.value.status, refused.value.body["code"]) == (413, "too_large")


@pytest.mark.parametrize("field", ["messages", "tools", "stop"])
async def test_many_wrong_values_are_one_error(field):
    """Each was an error of its own: 1 MiB of them took 472 MiB."""
    wrong = json.dumps({"model": "m", "messages": [{}], field: [7] * 100_000}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(RequestValidationError) as refused:
            await received(request_of(wrong), ChatRequest, 1 << 20)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(refused.value.errors()) < 5
    assert most < 20 * len(wrong)


def test_what_all_may_hold_is_no_less_than_one():
    with pytest.raises(ValueError, match="max_bodies_bytes"):
        ServerSettings(max_bodies_bytes=5, max_body_bytes=6)


def test_bodies_that_come_at_once_are_refused_over_http(listen):
    server = listen(max_body_bytes=5000, max_bodies_bytes=6000)
    with server.client() as client:
        server.served.bodies.held = 4000  # of a request that is being answered
        refused = client.post("/v1/files", files={"file": ("a.txt", "a" * 3000)})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_much_at_once")
        server.served.bodies.held = 0
        assert client.post("/v1/files", files={"file": ("a.txt", "a" * 3000)}).is_success
        until(lambda: server.served.bodies.held == 0)  # after the client has its answer
        assert "selfextend_rag_bodies_bytes 0.0" in client.get("/metrics").text
