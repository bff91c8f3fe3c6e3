"""`RemoteLLM` on this project's own server: the same answers as in the process, one by one."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from selfextend_rag import ContextBudgetExceeded, LongContextLLM
from tests.serve.conftest import STORY

pytest.importorskip("httpx2", reason="the extra remote is not installed")

QUESTIONS = [
    "What is the height of the old mill?",
    "What is the name of the miller?",
    "Who has lived there since the flood?",
    "Why?",
]


@pytest.fixture(scope="module")
def remote(server):
    return LongContextLLM.connect(f"{server.url}/v1", at_once=4)


def test_it_answers_as_the_model_in_the_process(llm, remote):
    here, there = llm.read([STORY, "A second text."]), remote.read([STORY, "A second text."])
    assert there.plan.prompt_tokens == here.plan.prompt_tokens
    assert remote.planner.extended_window == llm.planner.extended_window
    answers = there.ask_batch(QUESTIONS)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        own = here.ask(question)
        assert (answer.text, answer.finish_reason) == (own.text, own.finish_reason)
        assert answer.usage.prompt_tokens == own.usage.prompt_tokens
        assert answer.usage.completion_tokens == own.usage.completion_tokens
    assert there.ask(QUESTIONS[0]).usage.cached_tokens > here.plan.prompt_tokens - 4
    history = [(QUESTIONS[0], "6400")]
    assert there.ask("And?", history=history).text == here.ask("And?", history=history).text


def test_conversations_and_texts_too(llm, remote):
    said = [{"role": "user", "content": "The pass key is 48213. What is the pass key?"}]
    for prompt in (said, "The pass key is 48213. The pass key is"):
        own, answer = (x.generate(prompt, max_new_tokens=20) for x in (llm, remote))
        assert answer.text == own.text
        assert answer.usage.prompt_tokens == own.usage.prompt_tokens


def test_a_schema_is_kept_to(llm, remote):
    schema = {
        "type": "object",
        "properties": {"height": {"type": "integer"}},
        "required": ["height"],
        "additionalProperties": False,
    }
    options = {"json_schema": schema, "max_new_tokens": 40}
    text = remote.read(STORY).ask(QUESTIONS[0], **options).text
    assert json.loads(text) == json.loads(llm.read(STORY).ask(QUESTIONS[0], **options).text)


def test_a_call_that_must_be_made_is_made(remote):
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "pay", "parameters": parameters}}
    said = [{"role": "user", "content": "Pay 5."}]
    answer = remote.generate(said, tools=[tool], tool_choice="pay", max_new_tokens=60)
    assert answer.finish_reason == "tool_calls"
    assert answer.tool_calls[0].name == "pay"


def test_what_does_not_fit_is_refused_without_a_request(server, remote):
    before = server.client().get("/metrics").text.count("completions")
    with pytest.raises(ContextBudgetExceeded, match="that the server takes"):
        remote.read("word " * 20000)
    assert server.client().get("/metrics").text.count("completions") == before


def test_clients_at_the_same_time_get_their_own_answers(llm, remote):
    texts = [f"The pass key of house {n} is {n}{n}3{n}." for n in range(4)]
    own = [llm.read(text).ask("What is the pass key?").text for text in texts]
    readings = [remote.read(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(readings[n % 4].ask, "What is the pass key?") for n in range(24)]
        assert [future.result().text for future in asked] == own * 6
