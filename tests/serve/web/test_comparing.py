"""Whole documents and passages that BM25 finds, side by side."""

from __future__ import annotations

import asyncio

import pytest

from selfextend_rag.evals import Retrieval, compare
from tests.serve.web.events import Connection, events_of
from tests.serve.web.test_asking import FACT, FILLER, QUESTION

OTHER = "The mill stands by the river, and its wheel has not moved since the flood. " * 25
STORY = FILLER * 20 + "\n\n" + FACT + " " + FILLER * 3 + "\n\n" + FILLER * 20


@pytest.fixture
async def files(client, upload):
    return [await upload(client, OTHER, "mill.txt"), await upload(client, STORY)]


async def compared(client, body):
    response = await client.post("/app/api/compare", json=body)
    assert response.status_code == 200, response.text
    *before, (name, both) = events_of(response.text)
    assert {name for name, _ in before} <= {"progress"}
    assert name == "compared"
    return both


async def test_both_sides_are_those_of_the_command_that_compares(client, llm, files):
    body = {"files": files, "question": QUESTION, "pieces": 2}
    both = await compared(client, body)
    documents = [client.app.state.served.files.get(name).document for name in files]
    (expected,) = compare(llm, documents, [QUESTION], retrieval=Retrieval(passages=2)).questions
    whole, retrieved = both["whole"], both["retrieved"]
    assert both["retriever"] == "bm25"
    assert whole["text"] == expected.whole.text
    assert retrieved["text"] == expected.retrieved.text
    assert whole["tokens_read"] == expected.whole.prompt_tokens
    assert retrieved["tokens_read"] == expected.retrieved.prompt_tokens
    assert retrieved["tokens_read"] < llm.planner.pretraining_window < whole["tokens_read"]
    assert min(whole["seconds"], retrieved["seconds"]) > 0
    read = [found for found in expected.passages if found.read]
    assert [(x["start"], x["end"], x["text"]) for x in retrieved["passages"]] == [
        (found.start, found.end, found.text) for found in read
    ]
    texts = dict(zip(files, (OTHER, STORY), strict=True))
    for passage in [*retrieved["passages"], *whole["evidence"]]:
        assert texts[passage["file_id"]][passage["start"] : passage["end"]] == passage["text"]
    assert FACT in retrieved["passages"][0]["text"]
    assert FACT[:-1] in whole["evidence"][0]["text"]


async def test_a_reading_that_is_kept_serves_and_its_seconds_count(client, files):
    kept = client.app.state.served.readings
    body = {"files": files, "question": QUESTION}
    first = await compared(client, body)
    (reading,) = kept.all()
    again = await compared(client, body)
    assert [each.created for each in kept.all()] == [reading.created]
    assert again["whole"]["text"] == first["whole"]["text"]
    seconds = kept.get([file.document for file in client.app.state.served.files.all()]).seconds
    assert again["whole"]["seconds"] > seconds


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"question": ""}, 400),
        ({"pieces": 0}, 400),
        ({"files": ["file-none"]}, 404),
        ({"max_new_tokens": 505}, 400),  # no passage fits next to that
    ],
)
async def test_what_can_t_be_compared_is_refused(client, files, wrong, status):
    body = {"files": files, "question": QUESTION, **wrong}
    response = await client.post("/app/api/compare", json=body)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]
    assert client.app.state.served.admission.admitted == 0


async def test_a_client_that_leaves_ends_the_comparison(client, upload):
    served = client.app.state.served
    body = {"files": [await upload(client, FILLER * 150)], "question": QUESTION}
    connection = Connection(client.app, "/app/api/compare", body)
    connection.start()
    while not served.admission.admitted:
        await asyncio.sleep(0.01)
    connection.leave()
    await connection.ended()
    assert served.admission.admitted == 0
    assert served.readings.all() == []
