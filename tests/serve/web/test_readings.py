"""Kept readings: listed with what they are of, opened with their documents, deleted for good."""

from __future__ import annotations

import time

import pytest

from selfextend_rag.serve import ServerSettings
from tests.serve.web.events import events_of

TEXTS = {"notes.txt": "The pass key is 48213.", "mill.txt": "The mill stands by the river. " * 9}


async def read(client, files):
    events = events_of((await client.post("/app/api/read", json={"files": files})).text)
    assert events[-1][0] == "read", events
    return events[-1][1]


async def listed(client):
    return (await client.get("/app/api/readings")).json()["readings"]


async def test_a_reading_is_listed_with_its_files_and_figures(client, upload):
    assert await listed(client) == []
    before = time.time()
    files = [await upload(client, text, name) for name, text in TEXTS.items()]
    made = await read(client, files)
    (one,) = await listed(client)
    assert one["files"] == files
    assert one["titles"] == ["notes", "mill"]
    assert (one["tokens"], one["nbytes"]) == (made["tokens"], made["nbytes"])
    assert before <= one["created"] <= time.time()
    assert one["where"] == ["memory"]
    await client.delete(f"/v1/files/{files[0]}")
    (one,) = await listed(client)
    assert one["files"] == [None, files[1]]


async def test_the_reading_that_was_used_last_comes_first(client, upload):
    first, second = [await upload(client, text, name) for name, text in TEXTS.items()]
    await read(client, [first])
    await read(client, [second])
    assert [each["files"] for each in await listed(client)] == [[second], [first]]
    await read(client, [first])
    assert [each["files"] for each in await listed(client)] == [[first], [second]]


@pytest.mark.parametrize("saves", [False, True], ids=["in memory", "on disk"])
async def test_an_opened_reading_is_asked_without_reading_again(
    make_client, upload, tmp_path, saves
):
    """Also on another server, later, from the disk."""
    settings = ServerSettings(readings_dir=tmp_path / "kept" if saves else None)
    client = make_client(settings)
    assert (await client.get("/app/api/info")).json()["saves"] is saves
    files = [await upload(client, text, name) for name, text in TEXTS.items()]
    made = await read(client, files)
    (one,) = await listed(client)
    assert one["where"] == (["memory", "disk"] if saves else ["memory"])
    if saves:
        client = make_client(settings)
        (again,) = await listed(client)
        assert again["where"] == ["disk"]
        assert again["files"] == [None, None]
        assert {**again, "where": 0, "files": 0, "nbytes": 0} == {
            **one,
            "where": 0,
            "files": 0,
            "nbytes": 0,
        }
    else:
        for file in files:
            await client.delete(f"/v1/files/{file}")
    opened = (await client.post(f"/app/api/readings/{one['id']}/open")).json()["files"]
    assert [file["filename"] for file in opened] == list(TEXTS)
    names = [file["id"] for file in opened]
    shown = (await client.get(f"/app/api/files/{names[0]}")).json()
    assert shown["text"] == TEXTS["notes.txt"]
    body = {"files": names, "question": "What is the pass key?"}
    events = events_of((await client.post("/app/api/ask", json=body)).text)
    assert "progress" not in [name for name, _ in events]
    assert events[-1][1]["text"].strip() == "48213"
    assert events[-1][1]["usage"]["prompt_tokens_details"]["cached_tokens"] == made["tokens"]
    twice = (await client.post(f"/app/api/readings/{one['id']}/open")).json()["files"]
    assert [file["id"] for file in twice] == names
    uploaded = [await upload(client, text, name) for name, text in TEXTS.items()]
    assert uploaded == names, "who drops the same files again has the same"


async def test_a_deleted_reading_is_gone_from_memory_and_disk(make_client, upload, tmp_path):
    folder = tmp_path / "kept"
    client = make_client(ServerSettings(readings_dir=folder))
    await read(client, [await upload(client, TEXTS["notes.txt"])])
    (one,) = await listed(client)
    assert len(list(folder.iterdir())) == 1
    response = await client.delete(f"/app/api/readings/{one['id']}")
    assert response.json() == {"deleted": True}
    assert await listed(client) == []
    assert list(folder.iterdir()) == []
    for request in (client.delete, client.post):
        path = f"/app/api/readings/{one['id']}" + ("/open" if request == client.post else "")
        response = await request(path)
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "reading_not_found"


@pytest.mark.parametrize("name", ["..%2F..%2Fother", "%2e%2e", "*", "x%00y", "a" * 300])
async def test_no_name_reaches_another_file(make_client, tmp_path, name):
    kept = tmp_path / "kept"
    client = make_client(ServerSettings(readings_dir=kept))
    (tmp_path / "other.reading").write_text("mine")
    for request, end in ((client.delete, ""), (client.post, "/open")):
        response = await request(f"/app/api/readings/{name}{end}")
        assert response.status_code in (404, 405)
    assert (tmp_path / "other.reading").read_text() == "mine"
