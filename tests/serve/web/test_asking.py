"""Reading and asking as events: progress, text, and what the answer rests on."""

from __future__ import annotations

import asyncio
import json

import pytest

from selfextend_rag.serve import ServerSettings
from selfextend_rag.serve import events as stream_events
from tests.serve.web.events import Connection, events_of

FACT = "The pass key is 48213."
FILLER = "The lamp of the tower is lit at dusk, and the door is shut. "
STORY = FILLER * 30 + FACT + " " + FILLER * 30
OTHER = "The mill stands by the river. " * 8
QUESTION = "What is the pass key?"


@pytest.fixture
def ask(client):
    async def asked(**body):
        response = await client.post("/app/api/ask", json={"question": QUESTION, **body})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return events_of(response.text)

    return asked


async def test_an_answer_comes_as_text_with_what_it_rests_on(client, llm, ask, upload):
    mill, story = await upload(client, OTHER, "mill.txt"), await upload(client, STORY)
    events = await ask(files=[mill, story])
    names = [name for name, _ in events]
    assert names == sorted(names, key=["progress", "text", "answer"].index)
    assert {"progress", "text", "answer"} == set(names)
    progress = [data for name, data in events if name == "progress"]
    assert [each["done"] for each in progress] == sorted(each["done"] for each in progress)
    assert progress[-1]["done"] == progress[-1]["total"]
    assert progress[-1]["seconds_left"] == 0.0
    answer = events[-1][1]
    assert answer["text"] == "".join(data["text"] for name, data in events if name == "text")
    assert answer["text"].strip() == "48213"
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0  # read for this answer
    assert answer["usage"]["prompt_tokens"] > progress[-1]["total"]
    again = (await ask(files=[mill, story]))[-1][1]["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] == progress[-1]["total"]
    assert answer["seconds"] > 0
    best = answer["evidence"][0]
    assert best["file_id"] == story
    assert "48213" in best["text"]
    assert STORY[best["start"] : best["end"]] == best["text"]
    assert STORY[: best["start"]].endswith(best["before"])
    assert STORY[best["end"] :].startswith(best["after"])
    assert best["before"]
    shares = answer["attention"]
    assert list(shares) == [mill, story]
    assert [len(each) for each in shares.values()] == [200, 200]
    assert sum(map(sum, shares.values())) == pytest.approx(1.0)
    direct = llm.read(
        [client.app.state.served.files.get(name).document for name in (mill, story)]
    ).ask(QUESTION)
    assert answer["text"] == direct.text
    assert list(map(tuple, shares.values())) == list(direct.attention)


async def test_documents_that_were_read_are_not_read_again(client, upload, ask):
    files = [await upload(client, STORY)]
    response = await client.post("/app/api/read", json={"files": files})
    events = events_of(response.text)
    assert [name for name, _ in events][-2:] == ["progress", "read"]
    read = events[-1][1]
    (kept,) = client.app.state.served.readings.all()
    assert read["tokens"] == kept.tokens == read["plan"]["prompt_tokens"]
    assert read["nbytes"] == kept.nbytes
    assert read["seconds"] > 0
    again = events_of((await client.post("/app/api/read", json={"files": files})).text)
    assert again == [("read", read)]
    assert "progress" not in [name for name, _ in await ask(files=files)]


async def test_options_reach_the_model(client, upload, ask):
    files = [await upload(client, STORY)]
    short = (await ask(files=files, max_new_tokens=1))[-1][1]
    assert short["usage"]["completion_tokens"] == 1
    assert short["finish_reason"] == "length"
    schema = {"type": "object", "properties": {"key": {"type": "integer"}}, "required": ["key"]}
    held = (await ask(files=files, json_schema=schema, max_new_tokens=40))[-1][1]
    assert isinstance(json.loads(held["text"])["key"], int)
    drawn = [
        (await ask(files=files, temperature=3.0, seed=seed, max_new_tokens=4))[-1][1]["text"]
        for seed in (7, 7, 8)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


async def test_the_server_s_longest_answer_is_that_of_requests_that_name_none(make_client, upload):
    client = make_client(ServerSettings(max_new_tokens=3))
    body = {"files": [await upload(client, STORY)], "question": QUESTION}
    assert (await client.get("/app/api/info")).json()["max_new_tokens"] == 3
    plan = (await client.post("/app/api/plan", json=body)).json()["plan"]
    assert plan["max_new_tokens"] == 3
    events = events_of((await client.post("/app/api/ask", json=body)).text)
    assert events[-1][1]["usage"]["completion_tokens"] == 3
    both = events_of((await client.post("/app/api/compare", json=body)).text)[-1][1]
    assert both["whole"]["text"] == events[-1][1]["text"]


async def test_history_comes_before_the_question(client, llm, upload, ask):
    history = [["What is lit at dusk?", "The lamp."]]
    bare = (await ask(files=[await upload(client, STORY)]))[-1][1]["usage"]
    more = (await ask(files=[await upload(client, STORY)], history=history))[-1][1]["usage"]
    added = len(llm.prompts.question(QUESTION, [tuple(history[0])]))
    alone = len(llm.prompts.question(QUESTION))
    assert more["prompt_tokens"] - bare["prompt_tokens"] == added - alone


@pytest.mark.parametrize("route", ["read", "ask"])
async def test_what_does_not_fit_is_refused_before_the_model_runs(client, llm, upload, route):
    long = FILLER * (llm.planner.extended_window // 8)
    body = {"files": [await upload(client, long)]} | ({"question": "?"} if route == "ask" else {})
    response = await client.post(f"/app/api/{route}", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["needed"] - error["available"] == error["excess"] > 0
    assert client.app.state.served.admission.admitted == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"question": " "}, "question"),
        ({"temperature": -1.0}, "temperature"),
        ({"seed": 1 << 70}, "seed"),
        ({"json_schema": {"kind": "object"}}, "schema"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"history": [["a question alone"]]}, "history"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": "."}, "stop"),
    ],
)
async def test_a_wrong_request_is_said_to_be_wrong_and_nothing_is_read(client, upload, wrong, said):
    body = {"files": [await upload(client, STORY)], "question": QUESTION, **wrong}
    response = await client.post("/app/api/ask", json=body)
    assert response.status_code == 400, response.text
    assert said in response.json()["error"]["message"]
    assert client.app.state.served.readings.all() == []


async def test_what_fails_while_events_are_sent_is_an_event(client, upload, monkeypatch):
    async def failing(*_, **__):
        raise RuntimeError("<b>secret</b>")

    monkeypatch.setattr(client.app.state.served.readings, "aget", failing)
    files = [await upload(client, STORY)]
    response = await client.post("/app/api/read", json={"files": files})
    ((name, data),) = events_of(response.text)
    assert name == "error"
    assert "secret" not in data["message"]
    assert client.app.state.served.admission.admitted == 0


async def test_a_client_that_leaves_ends_its_reading(client, upload):
    """The model's worker is free again, and no half reading is kept."""
    served = client.app.state.served
    files = [await upload(client, FILLER * 150)]
    async with Connection(client.app, "/app/api/read", {"files": files}) as connection:
        name, figures = await connection.event()
        assert name == "progress"
        assert figures["done"] < figures["total"]
    await connection.ended()
    assert served.admission.admitted == 0
    assert served.readings.all() == []
    events = events_of((await client.post("/app/api/read", json={"files": files})).text)
    assert events[-1][0] == "read"


async def test_a_client_that_leaves_ends_its_answer(client, upload):
    served = client.app.state.served
    files = [await upload(client, STORY)]
    body = {"files": files, "question": QUESTION, "temperature": 5.0, "max_new_tokens": 400}
    async with Connection(client.app, "/app/api/ask", body) as connection:
        while (await connection.event())[0] != "text":
            pass
    await connection.ended()
    assert served.admission.admitted == 0
    counted = served.metrics.text().decode()
    assert 'tokens_total{kind="completion"}' not in counted  # none came to its end
    assert 'requests_total{route="/app/api/ask",status="499"} 1.0' in counted


async def test_a_client_that_takes_nothing_loses_its_place(client, upload, monkeypatch):
    """It held one of the few places for as long as it liked."""
    monkeypatch.setattr(stream_events, "SECONDS_TO_TAKE", 0.05)
    body = {"files": [await upload(client, STORY)], "question": QUESTION}
    connection = Connection(client.app, "/app/api/ask", body)

    async def stuck(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    connection._sent.put = stuck
    connection.start()
    await asyncio.wait_for(connection.ended(), 60)
    served = client.app.state.served
    assert served.admission.admitted == 0
    counted = served.metrics.text().decode()
    assert 'requests_total{route="/app/api/ask",status="499"} 1.0' in counted


async def test_more_than_may_wait_are_sent_away(make_client, upload):
    client = make_client(ServerSettings(max_waiting=0))
    files = [await upload(client, STORY)]
    async with Connection(client.app, "/app/api/read", {"files": files}) as connection:
        await connection.event()
        refused = await client.post("/app/api/read", json={"files": files})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        while (await connection.event())[0] != "read":
            pass
    await connection.ended()
    assert (await client.post("/app/api/read", json={"files": files})).status_code == 200


async def test_a_server_that_stops_says_so_in_the_stream(client, upload):
    files = [await upload(client, FILLER * 150)]
    async with Connection(client.app, "/app/api/read", {"files": files}) as connection:
        await connection.event()
        await client.app.state.served.admission.close(0)
        while (event := await connection.event())[0] == "progress":
            pass
        assert event[0] == "error"
        assert event[1]["code"] == "shutting_down"
        await asyncio.wait_for(connection.ended(), 10)
