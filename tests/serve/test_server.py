"""Models, files, figures, and who is let in."""

from __future__ import annotations

import asyncio

import pytest

from selfextend_rag.documents import Document
from selfextend_rag.serve import ServerSettings
from selfextend_rag.serve.files import FileStore, NoSpace
from selfextend_rag.serve.guard import is_loopback
from tests.serve.conftest import STORY


def test_the_model_says_its_windows(client, llm):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "bundled"
    assert model["max_model_len"] == llm.planner.extended_window
    assert model["pretraining_window"] == 512
    longest = llm.planner.plan(model["max_model_len"] - 1, 1).settings
    assert (model["group_size"], model["neighbor_window"]) == (
        longest.group_size,
        longest.neighbor_window,
    )
    assert client.get("/v1/models/bundled").json() == model
    assert client.get("/v1/models/other").status_code == 404


def test_a_file_is_kept_once_and_removed(client):
    sent = client.post("/v1/files", files={"file": ("a/../b.txt", STORY)}).json()
    assert sent["filename"] == "b.txt"
    assert sent["bytes"] == len(STORY)
    assert client.post("/v1/files", files={"file": ("b.txt", STORY)}).json()["id"] == sent["id"]
    other = client.post("/v1/files", files={"file": ("c.txt", STORY)}).json()
    assert other["id"] != sent["id"]
    assert sent in client.get("/v1/files").json()["data"]
    assert client.get(f"/v1/files/{sent['id']}").json() == sent
    content = client.get(f"/v1/files/{sent['id']}/content")
    assert content.text == STORY
    assert content.headers["content-type"].startswith("text/plain")
    assert client.delete(f"/v1/files/{sent['id']}").json()["deleted"] is True
    assert client.get(f"/v1/files/{sent['id']}").status_code == 404
    client.delete(f"/v1/files/{other['id']}")


def test_what_a_file_lacks_is_said_and_what_is_none_is_refused(client):
    page = "<p>Read me.</p><script>var x</script>"
    sent = client.post("/v1/files", files={"file": ("page.html", page)}).json()
    assert sent["format"] == "html"
    assert isinstance(sent["remarks"], list)
    client.delete(f"/v1/files/{sent['id']}")
    for name, data in (("empty.txt", b""), ("prog", b"\x7fELF" + bytes(50)), ("a.pdf", b"%PDF-1.")):
        refused = client.post("/v1/files", files={"file": (name, data)})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "unreadable_file"


def test_the_space_for_files_is_bounded(listen):
    server = listen(max_files=2, max_files_bytes=1000, max_body_bytes=5000)
    with server.client() as client:
        big = client.post("/v1/files", files={"file": ("a.txt", "a" * 1001)})
        assert (big.status_code, big.json()["error"]["code"]) == (413, "too_many_files")
        huge = client.post("/v1/files", files={"file": ("a.txt", "a" * 5001)})
        assert (huge.status_code, huge.json()["error"]["code"]) == (413, "too_large")
        form = {"content-type": "multipart/form-data; boundary=x"}
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        body = iter([head, *[b"a" * 1000] * 9])
        endless = client.post("/v1/files", content=body, headers=form)
        assert endless.status_code == 413  # its length was not declared
        for name in "ab":
            assert client.post("/v1/files", files={"file": (name, "text")}).status_code == 200
        third = client.post("/v1/files", files={"file": ("c", "text")})
        assert third.json()["error"]["code"] == "too_many_files"


def test_a_key_is_wanted_where_one_is_set(listen):
    server = listen(api_key="secret")
    with server.client() as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            refused = client.get("/v1/models", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                401,
                "invalid_api_key",
            )
        right = {"Authorization": "Bearer secret"}
        assert client.get("/v1/models", headers=right).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("key", ["schlüssel", "secret\n"])
def test_a_key_may_be_any_text_and_come_from_a_file(listen, key):
    """Letters beyond ASCII, and the line end of a file, made a key that no client could send."""
    with listen(api_key=key).client() as client:
        sent = [(b"authorization", f"Bearer {key.strip()}".encode())]
        assert client.get("/v1/models", headers=sent).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Bearer s"}).status_code == 401


@pytest.mark.parametrize("origin", ["https://a.example/", "a.example", "*", "https://A.example"])
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(ValueError, match="allowed_origins"):
        ServerSettings(allowed_origins=(origin,))


def test_names_of_hosts_are_told_apart_whatever_their_case(listen):
    with listen(allowed_hosts=("Docs.Example",)).client() as client:
        assert client.get("/v1/models", headers={"Host": "docs.example"}).status_code == 200


def test_other_names_of_the_host_are_refused(client, listen):
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        refused = client.get("/v1/models", headers={"Host": host})
        assert (refused.status_code, refused.json()["error"]["code"]) == (421, "host_not_allowed")
    for host in ("localhost", "LOCALHOST:99", "[::1]:8000"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    server = listen(allowed_hosts=("*",))
    with server.client() as other:
        assert other.get("/v1/models", headers={"Host": "any.example"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://["]
)
def test_pages_of_other_origins_are_refused(client, origin):
    for method, path in (("POST", "/v1/files"), ("DELETE", "/v1/files/x"), ("GET", "/v1/models")):
        refused = client.request(method, path, headers={"Origin": origin})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")


def test_its_own_pages_and_allowed_ones_are_let_in(server, client, listen):
    assert client.get("/v1/models", headers={"Origin": server.url}).status_code == 200
    page = "https://a.example"
    with listen(allowed_origins=(page,)).client() as other:
        allowed = other.get("/v1/models", headers={"Origin": page})
        assert allowed.headers["access-control-allow-origin"] == page
        asks = {"Origin": page, "Access-Control-Request-Method": "POST"}
        assert other.options("/v1/files", headers=asks).status_code == 200
    with listen(allowed_origins=(page,), api_key="secret").client() as other:
        refused = other.get("/v1/models", headers={"Origin": page})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == page  # or it can't be read


def test_every_answer_forbids_guessing_types_and_frames(client):
    for path, host in (
        ("/v1/models", "localhost"),
        ("/nowhere", "localhost"),
        ("/v1/files/none", "localhost"),
        ("/v1/models", "evil.example"),
    ):
        headers = client.get(path, headers={"Host": host}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


async def test_files_that_come_at_once_stay_in_their_bounds():
    """Each was measured against what was kept, and not against those on their way."""
    store = FileStore(3, 1000)
    coming = [store.add(f"Text number {n}.".encode(), f"{n}.txt") for n in range(9)]
    found = await asyncio.gather(*coming, return_exceptions=True)
    assert [isinstance(each, NoSpace) for each in found] == [False] * 3 + [True] * 6
    assert len(store) == 3
    again = await store.add(b"Text number 1.", "1.txt")  # is there already, so it needs no space
    assert again is found[1]
    store.remove(again.id)
    assert (await store.add(b"Text number 1.", "1.txt")).id == again.id


async def test_a_file_is_parsed_once_however_often_it_comes(monkeypatch):
    store, parsed = FileStore(9, 1000), []
    parse = Document.from_bytes
    monkeypatch.setattr(
        Document,
        "from_bytes",
        lambda data, name, **how: parsed.append(name) or parse(data, name, **how),
    )
    for _ in range(3):
        assert (await store.document_of(b"A text.", "a.txt")).text == "A text."
    await store.add(b"A text.", "b.txt")
    assert parsed == ["a.txt", "b.txt"]


def test_figures_count_what_was_done(client):
    body = {"model": "bundled", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 2}
    before = figures(client)
    usage = client.post("/v1/chat/completions", json=body).json()["usage"]
    after = figures(client)
    route = 'selfextend_rag_requests_total{route="/v1/chat/completions",status="200"}'
    assert after[route] - before.get(route, 0) == 1
    tokens = 'selfextend_rag_tokens_total{kind="prompt"}'
    assert after[tokens] - before.get(tokens, 0) == usage["prompt_tokens"]
    assert after["selfextend_rag_requests_admitted"] == 0
    client.post("/v1/chat/completions", json={"model": 7})
    wrong = 'selfextend_rag_requests_total{route="/v1/chat/completions",status="400"}'
    assert figures(client)[wrong] - after.get(wrong, 0) == 1


def figures(client):
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_an_unknown_path_is_an_error_in_the_same_form(client):
    assert client.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert client.get("/v1/chat/completions").status_code == 405


def test_what_is_reached_from_this_machine_alone():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.com", "")))
