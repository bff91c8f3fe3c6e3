"""A model on a server: planned here, sent as it is, checked by the server's own count."""

from __future__ import annotations

import asyncio
import json
import pickle
import socket
import threading
import time

import pytest

from selfextend_rag import (
    ConstraintError,
    ContextBudgetExceeded,
    Document,
    KeptReadings,
    LongContextLLM,
    ModelLoadError,
    ModelNotServed,
    NotOnServer,
    PromptMismatch,
    ServerAccessError,
    ServerBusy,
    ServerError,
    ServerUnreachable,
)
from selfextend_rag.planning import ContextPlan
from tests.llm.remote.fake import MODEL, event
from tests.tiny import byte_tokenizer, tiny_llama

FILE = "The key is 48213. It opens the <|end|> door."


def test_a_server_is_sent_the_tokens_that_the_model_would_run_here(serve, connect):
    """Text that reads like a control token stays text: sent as text, it would become one."""
    server = serve()
    here = LongContextLLM(tiny_llama(window=4096), byte_tokenizer(chat=True))
    reading = connect(server).read([Document.from_text(FILE, title="A"), "B is blue."])
    answer = reading.ask("Which key?", history=[("What?", "That.")])
    (path, body), own = server.requests[0], here.read(reading.documents)
    assert path == "/v1/completions"
    tokens = own._prepared("Which key?", {"history": [("What?", "That.")]}).tokens
    assert body["prompt"] == list(tokens)
    assert (answer.text, answer.finish_reason) == (" 48213", "stop")
    assert answer.usage.prompt_tokens == len(tokens) == answer.plan.prompt_tokens
    assert answer.usage.completion_tokens == len(answer.text)


@pytest.mark.parametrize("chat", [True, False])
def test_the_servers_own_tokenizer_will_do(serve, chat):
    server = serve(chat=chat)
    llm = LongContextLLM.connect(server.url)
    assert llm.prompts.chat is chat
    reading = llm.read("The key is 48213.")
    assert reading.ask("Which key?").text.strip() == "48213"
    assert llm.generate([{"role": "user", "content": "The key is 7."}]).text.strip() == "7"
    assert "messages" in server.requests[0][1] if chat else "prompt" in server.requests[0][1]
    with pytest.raises(ValueError, match="may be a control token"):
        llm.generate(FILE)
    groups = llm.plan_groups(["One. " * 300, "Two. " * 300, "Three. " * 300])
    assert len(groups) == 2


def test_without_a_tokenizer_of_either_side_it_says_what_to_give(serve):
    with pytest.raises(ModelLoadError, match="give tokenizer="):
        LongContextLLM.connect(serve(tokenizes=False).url)


def test_a_tokenizer_of_another_model_is_refused(serve):
    with pytest.raises(PromptMismatch, match="other tokens than the server's"):
        LongContextLLM.connect(serve().url, tokenizer="bundled")


def test_what_does_not_fit_is_refused_before_a_request_is_sent(serve, connect):
    server = serve(window=200)
    llm = connect(server)
    files = [Document.from_text("x" * 150, title="long"), Document.from_text("y" * 20, title="s")]
    with pytest.raises(ContextBudgetExceeded, match='drop the document "long"') as caught:
        llm.read(files)
    assert caught.value.available == 200
    assert "exceeds the 200 that the server takes" in str(caught.value)
    with pytest.raises(ContextBudgetExceeded):
        llm.generate("z" * 190)
    reading = llm.read("y" * 20, max_new_tokens=10)
    with pytest.raises(ContextBudgetExceeded, match="question 2 of the batch") as caught:
        reading.ask_batch(["Why?", "Why? " * 40])
    assert server.requests == []
    found = ContextPlan.from_dict(json.loads(json.dumps(reading.plan.to_dict())))
    assert found == reading.plan
    assert found.extended_window == 200
    assert "server takes" in found.explain()


def test_text_that_a_server_cuts_off_is_an_error_and_no_answer(serve, connect):
    """Sent as tokens, one missing token is noticed; as messages, what no template explains."""
    for told in ({}, {"tokenizes": False}):
        server = serve(cut=200, **told)
        llm = connect(server)
        with pytest.raises(PromptMismatch, match="has read 200 tokens of a prompt of") as caught:
            llm.read("The key is 1. " * 40).ask("Which key?")
        assert caught.value.read == 200
        assert caught.value.sent > 600
        assert llm.read("The key is 1.").ask("?", max_new_tokens=4).text == " 1"


def test_what_the_servers_template_writes_more_is_measured_and_allowed(serve, connect):
    server = serve(tokenizes=False, preamble="You are helpful. " * 4)
    llm = connect(server)
    answer = llm.read("The key is 12. " * 30).ask("Which key?")
    assert answer.text == " 12"
    assert [body["max_tokens"] for _, body in server.requests] == [256, 1]
    assert llm.generate([{"role": "user", "content": "key is 3"}]).text == " 3"
    assert len(server.requests) == 3  # it is measured once
    server.preamble = "key " * 60
    with pytest.raises(PromptMismatch, match="another tokenizer or chat template"):
        llm.generate([{"role": "user", "content": "key is 3"}])


def test_a_server_that_does_not_count_is_refused(serve, connect):
    with pytest.raises(ServerError, match=r"usage.prompt_tokens"):
        connect(serve(states_usage=False)).generate("key is 1")


def test_a_text_for_a_server_that_takes_no_tokens_must_hold_no_control_token(serve, connect):
    llm = connect(serve(tokenizes=False))
    with pytest.raises(ValueError, match="would become a control token"):
        llm.read(FILE).ask("Which key?")
    with pytest.raises(ValueError, match="would become a control token"):
        llm.generate([{"role": "user", "content": FILE}])


def test_answers_stream_as_they_come_also_awaited(serve, connect):
    reading = connect(serve(slow=0.02)).read("The key is 48213.")
    begun = time.perf_counter()
    with reading.stream("Which key?") as stream:
        parts = list(stream)
        assert stream.answer.usage.prefill_seconds < stream.answer.usage.decode_seconds
    assert parts == list(" 48213")
    assert time.perf_counter() - begun > 0.1

    async def ask():
        async with reading.stream("Which key?") as stream:
            return [part async for part in stream]

    assert asyncio.run(ask()) == parts


def test_lines_of_unicode_in_an_answer_do_not_end_an_event(serve, connect):
    said = "one\u2028two\x85three\x0cfour"
    assert connect(serve(answer=said)).generate("?").text == said


def test_questions_of_a_batch_run_at_the_same_time_within_bounds(serve, connect):
    server = serve(slow=0.01)
    reading = connect(server, at_once=3).read("Their key is 5.")
    answers = reading.ask_batch([f"The key is {n}" for n in range(12)])
    assert [answer.text.strip() for answer in answers] == [str(n) for n in range(12)]
    assert server.most == 3
    reading.ask_batch(["a", "b", "c", "d"], at_once=1)


def test_tokens_that_the_server_had_kept_are_counted(serve, connect):
    reading = connect(serve()).read("The key is 5.")
    first, again = reading.ask("Which?"), reading.ask("Which?")
    assert first.usage.cached_tokens == 0
    assert again.usage.cached_tokens == again.usage.prompt_tokens


def test_a_cancelled_answer_closes_its_request(serve, connect):
    server = serve(slow=0.05, answer="a" * 200)
    reading = connect(server).read("Text.")
    stop = threading.Event()
    with reading.stream("?", cancelled=stop) as stream:
        next(stream)
        stop.set()
        answer = stream.answer
    assert answer.finish_reason == "cancelled"
    assert 1 <= len(answer.text) < 50
    with reading.stream("?") as stream:
        next(stream)  # and one that is left

    async def leave():
        await asyncio.wait_for(reading._llm.agenerate("?"), 0.3)

    with pytest.raises(TimeoutError):
        asyncio.run(leave())
    end = time.monotonic() + 5
    while len(server.closed) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    assert len(server.closed) == 3


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(serve, connect):
    server = serve(busy=[(429, "0.2"), (503, "0")])
    begun = time.perf_counter()
    assert connect(server).generate("key is 4").text == " 4"
    assert time.perf_counter() - begun > 0.2
    server.busy = [(429, "3600")]
    with pytest.raises(ServerBusy) as caught:
        connect(server).generate("key is 4")
    assert caught.value.retry_after == 3600
    server.busy = [(429, "0")] * 9
    with pytest.raises(ServerBusy, match="too many"):
        connect(server, max_retries=2).generate("key is 4")
    assert len(server.busy) == 6


def test_a_schema_is_asked_for_by_the_servers_own_means_and_checked(serve, connect):
    schema = {"type": "object", "properties": {"key": {"type": "integer"}}}
    server = serve(answer='{"key": 5}')
    reading = connect(server).read("The key is 5.")
    assert json.loads(reading.ask("Which?", json_schema=schema, stop="}").text) == {"key": 5}
    body = server.requests[0][1]
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert "stop" not in body
    server.answer = "The key is 5."
    with pytest.raises(ConstraintError, match="no JSON"):
        reading.ask("Which?", json_schema=schema)


TOOLS = [{"type": "function", "function": {"name": "open", "parameters": {"type": "object"}}}]


def called(*parts, ended="tool_calls"):
    """Events in which calls come in parts, as vLLM sends them."""
    calls = [event({"index": 0, "delta": {"tool_calls": [part]}}) for part in parts]
    end = event({"index": 0, "delta": {}, "finish_reason": ended})
    return [*calls, end, event(usage={"prompt_tokens": 150, "completion_tokens": 9})]


def test_calls_of_tools_come_in_parts_and_are_read_whole(serve, connect):
    first = {"index": 0, "id": "c1", "function": {"name": "open", "arguments": ""}}
    texts = ('{"door": ', '"red"}')
    more = [{"index": 0, "function": {"arguments": text}} for text in texts]
    second = {"index": 1, "id": "c2", "function": {"name": "open", "arguments": "{}"}}
    server = serve(events=called(first, *more, second, ended="stop"))
    llm, asked = connect(server), [{"role": "user", "content": "Open both."}]
    answer = llm.generate(asked, tools=TOOLS, tool_choice="open")
    assert [(x.id, x.name, x.arguments) for x in answer.tool_calls] == [
        ("c1", "open", {"door": "red"}),
        ("c2", "open", {}),
    ]
    assert answer.finish_reason == "tool_calls"
    path, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert (body["tools"], body["tool_choice"]) == (TOOLS, "required")
    server.events = called(first, more[0], ended="length")
    answer = llm.generate(asked, tools=TOOLS)
    assert (answer.tool_calls, answer.unfinished_call) == ((), '{"door": ')
    assert answer.finish_reason == "length"
    server.events = called(first, more[0])
    with pytest.raises(ConstraintError, match="no JSON"):
        llm.generate(asked, tools=TOOLS)


def test_a_tool_of_several_is_named_and_a_history_of_calls_is_written_as_json(serve, connect):
    server = serve()
    two = [*TOOLS, {"type": "function", "function": {"name": "shut"}}]
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "open", "arguments": {}}}
    said = [
        {"role": "user", "content": "Open."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "The key is 6."},
    ]
    llm = connect(server)
    llm.generate(said, tools=two, tool_choice="shut", max_new_tokens=4)
    body = server.requests[0][1]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "shut"}}
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_options_are_sent_and_the_temperature_always_is(serve, connect):
    server = serve(answer="one. two")
    llm = connect(server)
    llm.generate("?", temperature=0.5, top_k=3, seed=1, stop="two", also_stop=["."])
    body = server.requests[0][1]
    assert {x: body[x] for x in ("temperature", "top_k", "seed")} == {
        "temperature": 0.5,
        "top_k": 3,
        "seed": 1,
    }
    assert sorted(body["stop"]) == [".", "two"]
    assert llm.generate("?", also_stop=".").text == "one"
    assert server.requests[1][1]["temperature"] == 0
    with pytest.raises(TypeError, match="unknown option colour"):
        llm.generate("?", colour=1)
    with pytest.raises(ValueError, match="temperature"):
        llm.check_options(temperature=-1)


def test_in_the_plain_form_a_line_end_before_an_answer_does_not_end_it(serve, connect):
    """As in this process: a server that is told to stop at line ends would answer nothing."""
    server = serve(chat=False, answer="\n\n 48213\nQuestion: And?")
    answer = connect(server).read("The key is 48213.").ask("Which?")
    assert (answer.text, answer.finish_reason) == ("48213", "stop")
    assert answer.usage.completion_tokens == 5
    assert [body.get("stop") for _, body in server.requests] == [["\n"], None]


@pytest.mark.parametrize(
    ("told", "kind", "message"),
    [
        ({"key": "secret"}, ServerAccessError, "401"),
        ({"models": ["a", "b"]}, ModelNotServed, "'a', 'b'"),
        ({"window": None}, ServerError, "give window="),
    ],
)
def test_what_can_not_be_connected_to_says_why(serve, connect, told, kind, message):
    with pytest.raises(kind, match=message):
        connect(serve(**told))


def test_a_model_that_is_not_there_and_a_server_that_is_not(serve, connect):
    server = serve(key="secret")
    assert connect(server, api_key="secret", model=MODEL).name == MODEL
    with pytest.raises(ModelNotServed, match="no model 'other'"):
        connect(server, api_key="secret", model="other")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServerUnreachable, match="is the server running"):
        LongContextLLM.connect(f"http://127.0.0.1:{port}/v1")
    with pytest.raises(ValueError, match="http://"):
        LongContextLLM.connect("localhost:8000")


def test_errors_in_the_middle_and_silence_are_errors_of_the_answer(serve, connect):
    server = serve(events=[event({"index": 0, "text": "a"})], breaks_off=True)
    with pytest.raises(ServerError, match="broke off"):
        connect(server).generate("?")
    server.events.append({"error": {"message": "out of memory", "code": 500}})
    with pytest.raises(ServerError, match="out of memory") as caught:
        connect(server).generate("?")
    assert caught.value.status == 500
    server.events = [event({"index": 0, "finish_reason": "content_filter", "text": ""})]
    server.events.append(event(usage={"prompt_tokens": 40}))
    server.breaks_off = False
    with pytest.raises((ServerError, PromptMismatch)):
        connect(server).generate("?")
    silent = serve(slow=3)
    llm = connect(silent, timeout=0.3)
    with pytest.raises(ServerUnreachable, match=r"said nothing for 0.3 seconds"):
        llm.generate("?")


def test_a_prompt_that_the_server_refuses_all_the_same_is_the_same_error(serve, connect):
    server = serve(window=300)
    llm = connect(server)
    server.window = 100  # started again, for less
    with pytest.raises(ContextBudgetExceeded, match="maximum context length is 100"):
        llm.generate("x" * 120)


def test_what_a_server_does_not_give_is_an_error_that_names_it(serve, connect, tmp_path):
    llm = connect(serve())
    reading = llm.read("The key is 5.")
    assert reading.ask("Which?").evidence == ()
    for ask in (
        lambda: reading.ask("Which?", evidence=True),
        lambda: reading.save(tmp_path / "a"),
        lambda: reading.saved_bytes,
        lambda: reading.answer_nll("Which?", "5"),
        lambda: llm.load(tmp_path / "a"),
        lambda: KeptReadings(llm, folder=tmp_path),
    ):
        with pytest.raises(NotOnServer, match=r"server"):
            ask()
    kept = KeptReadings(llm)
    assert kept.get(["The key is 5."]) is kept.get(["The key is 5."])


def test_it_can_be_pickled_without_its_key(serve, connect, monkeypatch):
    server = serve(key="secret")
    data = pickle.dumps(connect(server, api_key="secret", at_once=2))
    assert b"secret" not in data
    with pytest.raises(ServerAccessError):
        pickle.loads(data)
    monkeypatch.setenv("SELFEXTEND_RAG_API_KEY", "secret")
    again = pickle.loads(data)
    assert again.generate("key is 5").text == " 5"
    assert again.runner.worker.at_once == 2
