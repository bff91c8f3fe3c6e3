"""Answers over HTTP are those of the model, whole and streamed, and refusals say what is wrong."""

from __future__ import annotations

import base64
import json

import pytest

from selfextend_rag.serve.events import event
from tests.serve.conftest import STORY

CONVERSATION = [
    {"role": "user", "content": f"{STORY}\n\nQuestion: What is the height of the mill?"}
]


def asked(client, **body):
    return client.post(
        "/v1/chat/completions", json={"model": "bundled", "messages": CONVERSATION, **body}
    )


def events(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def about(file_id, question):
    file = {"type": "file", "file": {"file_id": file_id}}
    return [{"role": "user", "content": [file, {"type": "text", "text": question}]}]


def test_an_answer_is_that_of_the_model(client, llm):
    answer = llm.generate(CONVERSATION)
    body = asked(client).json()
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer.text, "refusal": None}
    assert choice["finish_reason"] == answer.finish_reason
    assert body["object"] == "chat.completion"
    assert body["usage"]["prompt_tokens"] == answer.usage.prompt_tokens
    assert body["usage"]["completion_tokens"] == answer.usage.completion_tokens
    assert body["usage"]["total_tokens"] == answer.usage.total_tokens


def test_a_stream_has_the_same_answer_then_its_end_then_its_usage(client):
    whole = asked(client).json()
    chunks = events(asked(client, stream=True, stream_options={"include_usage": True}))
    *parts, last, usage = chunks
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(part["choices"][0]["delta"]["content"] for part in parts)
    assert text == whole["choices"][0]["message"]["content"]
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["choices"] == []
    assert all(part["usage"] is None for part in [*parts, last])  # as OpenAI has it
    assert usage["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert {part["id"] for part in chunks} == {chunks[0]["id"]}


def test_a_prompt_that_came_before_counts_as_cached(client):
    asked(client)
    assert asked(client).json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 20


def test_a_plain_completion_continues_the_text(client, llm):
    prompt = f"{STORY}\n\nQuestion: What is the height of the mill?\nAnswer:"
    body = {"model": "bundled", "prompt": prompt, "max_tokens": 9, "stop": "\n"}
    whole = client.post("/v1/completions", json=body).json()
    answer = llm.generate(prompt, max_new_tokens=9, stop="\n")
    assert whole["choices"][0]["text"] == answer.text
    chunks = events(client.post("/v1/completions", json={**body, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer.text
    assert chunks[-1]["choices"][0]["finish_reason"] == answer.finish_reason


def test_max_tokens_and_stop_are_kept(client):
    cut = asked(client, max_tokens=1).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 1
    whole = asked(client).json()["choices"][0]["message"]["content"]
    stopped = asked(client, stop=[whole[1]]).json()["choices"][0]
    assert stopped["message"]["content"] == whole[:1]
    assert stopped["finish_reason"] == "stop"


def test_sampling_with_a_seed_repeats(client):
    one, two = (
        asked(client, temperature=2.0, seed=7).json()["choices"][0]["message"] for _ in range(2)
    )
    assert one == two


def test_a_file_is_read_whole_once_and_the_answer_says_where_it_is_from(client, story, llm):
    question = "What is the height of the old mill?"
    body = asked(client, messages=about(story, question)).json()
    (choice,) = body["choices"]
    passage = choice["evidence"][0]
    assert STORY[passage["start"] : passage["end"]] == passage["text"]
    assert choice["message"]["content"] in passage["text"]
    again = asked(client, messages=about(story, "What is the name of the miller?")).json()
    details = again["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] > len(llm.tokenizer.encode(STORY)) * 0.9
    last = events(asked(client, messages=about(story, question), stream=True))[-1]
    assert last["choices"][0]["evidence"] == choice["evidence"]


def test_a_file_may_come_with_the_message(client, story):
    data = base64.b64encode(STORY.encode()).decode()
    file = {"filename": "mill.txt", "file_data": f"data:text/plain;base64,{data}"}
    text = {"type": "text", "text": "What is the height of the old mill?"}
    messages = [{"role": "user", "content": [{"type": "file", "file": file}, text]}]
    brought = asked(client, messages=messages).json()["choices"]
    assert brought == asked(client, messages=about(story, text["text"])).json()["choices"]


def test_a_file_that_comes_with_the_message_needs_no_space(listen):
    """A server that keeps as many files as it may refused them all."""
    server = listen(max_files=1)
    with server.client() as client:
        client.post("/v1/files", files={"file": ("full.txt", "The server is full.")})
        data = base64.b64encode(STORY.encode()).decode()
        file = {"filename": "mill.txt", "file_data": data}
        text = {"type": "text", "text": "What is the height of the old mill?"}
        messages = [{"role": "user", "content": [{"type": "file", "file": file}, text]}]
        assert "6400" in asked(client, messages=messages).json()["choices"][0]["message"]["content"]
        assert len(server.served.files) == 1


def test_what_was_read_for_an_answer_is_not_cached(client):
    """The first answer about a file said that all of it had been read before."""
    text = "The owner of the forge is Maud, and it has three fires."
    file = client.post("/v1/files", files={"file": ("forge.txt", text)}).json()["id"]
    cached = [
        asked(client, messages=about(file, "Who is the owner?")).json()["usage"][
            "prompt_tokens_details"
        ]["cached_tokens"]
        for _ in range(2)
    ]
    assert cached[0] == 0
    assert cached[1] > 10


def test_all_of_a_conversation_about_a_file_is_read(client, server, story, monkeypatch):
    """What a system message said behind the last question was dropped; without text it was None."""
    seen = []
    find = server.served.readings.find
    monkeypatch.setattr(
        server.served.readings, "find", lambda _, question, **more: seen.append(question)
    )
    question = about(story, "How high is it?")
    system = {"role": "system", "content": "Answer in one word."}
    assert asked(client, messages=[*question, system]).status_code == 200
    assert seen == ["How high is it?\n\nAnswer in one word."]
    monkeypatch.setattr(server.served.readings, "find", find)
    for nothing in ({"role": "system", "content": None}, {"role": "system"}):
        refused = asked(client, messages=[nothing, *question])
        assert refused.status_code == 400
        assert "no text" in refused.json()["error"]["message"]


def test_a_conversation_about_a_file_goes_on(client, story):
    first, *_ = about(story, "What is the height of the old mill?")
    messages = [
        {"role": "system", "content": "Answer in one word."},
        first,
        {"role": "assistant", "content": "6400"},
        {"role": "user", "content": "What is the name of the miller?"},
    ]
    body = asked(client, messages=messages).json()
    assert body["choices"][0]["finish_reason"] == "stop"
    alone = asked(client, messages=about(story, messages[-1]["content"])).json()
    assert body["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"] + 10  # all was said


def test_answers_constrained_to_a_schema(client):
    schema = {"type": "object", "properties": {"height": {"type": "integer"}}}
    schema |= {"required": ["height"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "mill", "schema": schema}}
    found = json.loads(
        asked(client, response_format=form).json()["choices"][0]["message"]["content"]
    )
    assert isinstance(found["height"], int)
    anything = asked(client, response_format={"type": "json_object"}, max_tokens=60).json()
    assert anything["choices"][0]["message"]["content"].startswith("{")


ARGUMENTS = {
    "type": "object",
    "properties": {"key": {"enum": ["mill", "river"]}},
    "required": ["key"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": ARGUMENTS}}


def test_a_tool_is_called_whole_and_in_a_stream(client):
    wanted = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    wanted |= {"max_tokens": 80}
    (choice,) = asked(client, **wanted).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "look_up"
    assert json.loads(call["function"]["arguments"])["key"] in ("mill", "river")
    last = events(asked(client, stream=True, **wanted))[-1]["choices"][0]
    (streamed,) = last["delta"]["tool_calls"]
    assert streamed["function"] == call["function"]
    assert streamed["index"] == 0
    history = [
        *CONVERSATION,
        choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "7"},
    ]
    assert asked(client, messages=history, tools=[TOOL]).status_code == 200


def test_what_does_not_fit_is_refused_with_the_planners_figures(client):
    long = asked(client, messages=[{"role": "user", "content": "a long word " * 20000}])
    error = long.json()["error"]
    assert long.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert error["needed"] - error["available"] == error["excess"] > 0
    assert str(error["available"]) in error["message"]
    data = ("long.txt", "A sentence of some words. " * 20000)
    file = client.post("/v1/files", files={"file": data}).json()["id"]
    streamed = asked(client, messages=about(file, "What?"), stream=True)
    assert streamed.status_code == 400  # before the stream begins
    assert streamed.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"model": "gpt-4"}, 404, "no model 'gpt-4' here, but 'bundled'"),
        ({"messages": []}, 400, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "load a vision",
        ),
        ({"n": 2}, 400, "ask again with another seed"),
        ({"logprobs": True}, 400, "logprobs=True"),
        ({"frequency_penalty": 0.5}, 400, "repetition_penalty"),
        ({"functions": [{}]}, 400, "give tools"),
        ({"temprature": 0}, 400, "unknown field temprature"),
        ({"temperature": "0"}, 400, "temperature"),
        ({"temperature": -1}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_new_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 400, "differ"),
        ({"stream_options": {"wrong": True}}, 400, "wrong"),
        ({"response_format": {"type": "xml"}}, 400, "response_format"),
        ({"tools": [{"type": "function"}]}, 400, "a tool must be"),
        ({"tool_choice": "required"}, 400, "needs tools"),
        ({"messages": about("file-0", "What?")}, 404, "there is no file 'file-0'"),
    ],
)
def test_what_cant_be_had_is_refused_in_words(client, body, status, says):
    response = asked(client, **body)
    assert response.status_code == status
    assert says in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_zero_is_no_false(client):
    """``logprobs: 0`` of a completion asks for those of the tokens that were chosen."""
    body = {"model": "bundled", "prompt": "The", "logprobs": 0, "max_tokens": 1}
    refused = client.post("/v1/completions", json=body)
    assert refused.status_code == 400
    assert "logprobs=0" in refused.json()["error"]["message"]
    assert client.post("/v1/completions", json=body | {"logprobs": False}).is_success


def test_what_is_wrong_is_shown_in_short(client):
    refused = asked(client, messages="long " * 100_000)
    assert refused.status_code == 400
    assert len(refused.text) < 1000


def test_other_than_json_is_refused(client):
    """A page of another origin may send plain text without asking."""
    plain = {"content-type": "text/plain"}
    body = json.dumps({"model": "bundled", "messages": CONVERSATION})
    refused = client.post("/v1/chat/completions", content=body, headers=plain)
    assert (refused.status_code, refused.json()["error"]["type"]) == (415, "invalid_request_error")


@pytest.mark.parametrize("text", ["one\u2028two", "one\x85two\x0bthree", "half \ud83d of a pair"])
def test_an_event_is_one_line_for_every_client(text):
    """Clients that split lines as Python does broke off within the JSON."""
    sent = event({"text": text}).decode()
    assert len(sent.splitlines()) == 2
    assert json.loads(sent.removeprefix("data: ")) == {"text": text}


def test_what_asks_for_what_is_done_anyway_is_taken(client):
    more = {"n": 1, "logprobs": False, "frequency_penalty": 0, "user": "me", "store": None}
    assert asked(client, **more).status_code == 200


def test_files_and_tools_together_are_refused(client, story):
    response = asked(client, messages=about(story, "What?"), tools=[TOOL])
    assert response.status_code == 400
    assert "tools can't be used with attached files" in response.json()["error"]["message"]


def test_no_json_is_refused_as_such(client):
    response = client.post(
        "/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert "no JSON" in response.json()["error"]["message"]


def test_a_schema_that_can_t_be_enforced_is_refused_before_files_are_read(client, server):
    text = "The owner of the shop is Boris, and it opens at noon."
    file = client.post("/v1/files", files={"file": ("shop.txt", text)}).json()["id"]
    form = {"name": "x", "schema": {"type": "array", "uniqueItems": True}}
    refused = asked(
        client,
        messages=about(file, "Who is the owner?"),
        response_format={"type": "json_schema", "json_schema": form},
        stream=True,
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_schema"
    assert all(kept.names[0].title != "shop" for kept in server.served.readings.all())
