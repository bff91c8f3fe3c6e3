"""Answers in a form: JSON for a schema, calls of tools, forced or free."""

from __future__ import annotations

import json
import threading
from functools import partial

import jsonschema
import pytest

from selfextend_rag import LongContextLLM, SchemaError, ToolError
from tests.llm.tool_templates import family, scripted
from tests.output.random_schemas import random_schema

DOCUMENT = "The pass key is 48213. Remember it. 48213 is the pass key."
QUESTION = "What is the pass key?"
SCHEMA = {
    "type": "object",
    "properties": {"pass_key": {"type": "integer", "minimum": 10000, "maximum": 99999}},
    "required": ["pass_key"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "unlock",
            "description": "Unlock a door.",
            "parameters": {
                "type": "object",
                "properties": {"key": {"type": "integer"}, "door": {"enum": ["front", "back"]}},
                "required": ["key", "door"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "wait", "description": "Do nothing."}},
]


@pytest.fixture(scope="module")
def bundled():
    return LongContextLLM.bundled()


def test_the_bundled_model_answers_in_json_for_a_schema(bundled):
    answer = bundled.read(DOCUMENT).ask(QUESTION, json_schema=SCHEMA, max_new_tokens=64)
    assert json.loads(answer.text) == {"pass_key": 48213}
    assert answer.finish_reason == "stop"
    assert answer.complete


def test_json_that_the_budget_cut_is_reported_as_such(bundled):
    answer = bundled.read(DOCUMENT).ask(QUESTION, json_schema=SCHEMA, max_new_tokens=3)
    assert answer.finish_reason == "length"
    assert not answer.complete


def test_a_tool_that_must_be_called_is_called(bundled):
    answer = bundled.generate(
        f"{DOCUMENT} {QUESTION}", tools=TOOLS, tool_choice="unlock", max_new_tokens=80
    )
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.tool_calls
    assert call.name == "unlock"
    jsonschema.validate(call.arguments, TOOLS[0]["function"]["parameters"])
    assert answer.text == ""


def test_free_text_stays_text_when_tools_may_be_called(bundled):
    with bundled.stream(f"{DOCUMENT} {QUESTION}", tools=TOOLS, max_new_tokens=40) as stream:
        chunks = list(stream)
    assert "".join(chunks) == stream.answer.text
    assert stream.answer.tool_calls == ()
    assert stream.answer.finish_reason == "stop"


def test_what_a_schema_can_not_enforce_is_named_before_the_model_runs(bundled):
    with pytest.raises(SchemaError, match="uniqueItems"):
        bundled.generate("x", json_schema={"type": "array", "uniqueItems": True})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"json_schema": {"type": "array", "uniqueItems": True}}, SchemaError),
        ({"temperature": -1.0}, ValueError),
        ({"stop": ("",)}, ValueError),
        ({"warmth": 1.0}, TypeError),
    ],
)
def test_options_are_checked_without_a_reading_as_they_are_with_one(bundled, options, error):
    for refused in (bundled.check_options, partial(bundled.read("A.").ask, "B?")):
        with pytest.raises(error):
            refused(**options)
    bundled.check_options(json_schema=SCHEMA, temperature=0.5, seed=3, progress=print)


def test_a_choice_of_an_unknown_tool_is_refused(bundled):
    with pytest.raises(ToolError, match="unlock, wait"):
        bundled.generate("x", tools=TOOLS, tool_choice="open")


FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("seed", range(8))
def test_answers_are_valid_for_random_schemas_unless_the_budget_ends_them(
    bundled, seed, temperature
):
    """All 200: ``python benchmarks/structured.py``."""
    schema = random_schema(seed)
    answer = bundled.generate(
        f"{DOCUMENT}\n\nQuestion: {QUESTION}\nAnswer:",
        json_schema=schema,
        temperature=temperature,
        seed=seed,
        max_new_tokens=150,
    )
    assert answer.finish_reason in ("stop", "length")
    if answer.complete:
        jsonschema.validate(json.loads(answer.text), schema, format_checker=FORMATS)


def test_json_is_the_same_streamed_read_before_and_read_with_the_question(bundled):
    schema = random_schema(3)
    reading = bundled.read(DOCUMENT)
    asked = reading.ask(QUESTION, json_schema=schema, max_new_tokens=40)
    with reading.stream(QUESTION, json_schema=schema, max_new_tokens=40) as stream:
        chunks = list(stream)
    assert "".join(chunks) == stream.answer.text == asked.text
    whole = f"{DOCUMENT}\n\nQuestion: {QUESTION}\nAnswer:"
    first, again = (bundled.generate(whole, json_schema=schema, max_new_tokens=40) for _ in "ab")
    assert first.text == again.text == asked.text
    assert again.usage.cached_tokens > 0


def test_stop_texts_do_not_cut_json(bundled):
    reading = bundled.read(DOCUMENT)
    plain = reading.ask(QUESTION, json_schema=SCHEMA, max_new_tokens=64)
    options = {"json_schema": SCHEMA, "max_new_tokens": 64, "stop": ["pass", "48", "}"]}
    assert reading.ask(QUESTION, **options).text == plain.text


def test_json_can_be_cancelled_and_says_so(bundled):
    cancelled = threading.Event()
    endless = {"type": "array", "items": {"type": "boolean"}, "minItems": 100}
    with bundled.stream(
        "x", json_schema=endless, cancelled=cancelled, max_new_tokens=200
    ) as stream:
        next(stream)
        cancelled.set()
        assert stream.answer.finish_reason == "cancelled"
        assert not stream.answer.complete


def test_json_from_many_threads_at_once(bundled):
    reading = bundled.read(DOCUMENT)
    alone = reading.ask(QUESTION, json_schema=SCHEMA, max_new_tokens=40).text
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                reading.ask(QUESTION, json_schema=SCHEMA, max_new_tokens=40).text
            )
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 6


def test_a_thought_that_the_prompt_has_begun_is_ended_before_json_and_not_shown():
    tokenizer = family("HERMES")
    llm = LongContextLLM(
        scripted(tokenizer), tokenizer, template_options={"thinking": True}, prefix_cache_bytes=0
    )
    said = tokenizer.encode(
        'Hm: {"no": 1}.\n</think>\n\n{"pass_key": 70000}', add_special_tokens=False
    )
    llm.model.script(said, len(llm.prompts.prompt("x")))
    answer = llm.generate("x", json_schema=SCHEMA, max_new_tokens=200)
    assert answer.text == '{"pass_key": 70000}'
    assert answer.finish_reason == "stop"
    cut = llm.generate("x", json_schema=SCHEMA, max_new_tokens=10)
    assert (cut.text, cut.finish_reason) == ("", "length")


def test_a_thought_that_the_prompt_has_begun_comes_before_a_call_or_json():
    tokenizer = family("HERMES")
    llm = LongContextLLM(
        scripted(tokenizer), tokenizer, template_options={"thinking": True}, prefix_cache_bytes=0
    )
    options = {"tools": TOOLS[1:], "parallel_tool_calls": False, "json_schema": SCHEMA}
    llm.model.script([tokenizer.eos_token_id], 0)
    length = llm.generate("x", **options, max_new_tokens=1).usage.prompt_tokens
    call = '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>'
    for said, text, names in (
        ('{"pass_key": 70000}', '{"pass_key": 70000}', []),
        (call, "", ["wait"]),
    ):
        thought = f"Hm: {{1}}.\n</think>\n\n{said}"
        llm.model.script(tokenizer.encode(thought, add_special_tokens=False), length)
        answer = llm.generate("x", **options, max_new_tokens=200)
        assert (answer.text, [made.name for made in answer.tool_calls]) == (text, names)


def test_a_thought_that_the_prompt_has_begun_comes_before_a_forced_call():
    tokenizer = family("HERMES")
    llm = LongContextLLM(
        scripted(tokenizer), tokenizer, template_options={"thinking": True}, prefix_cache_bytes=0
    )
    options = {"tools": TOOLS, "tool_choice": "wait"}
    llm.model.script([tokenizer.eos_token_id], 0)
    length = llm.generate("x", **options, max_new_tokens=1).usage.prompt_tokens
    text = 'Hm.\n</think>\n\n<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>'
    llm.model.script(tokenizer.encode(text, add_special_tokens=False), length)
    answer = llm.generate("x", **options, max_new_tokens=200)
    assert [call.name for call in answer.tool_calls] == ["wait"]
    assert answer.finish_reason == "tool_calls"
