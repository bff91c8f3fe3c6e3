"""Answers in a form: JSON for a schema, calls of tools, forced or free."""

from __future__ import annotations

import json

import jsonschema
import pytest

from selfextend_rag import LongContextLLM, SchemaError, ToolError

DOCUMENT = "The pass key is 48213. Remember it. 48213 is the pass key."
QUESTION = "What is the pass key?"
SCHEMA = {
    "type": "object",
    "properties": {"pass_key": {"type": "integer"}},
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
        pieces = list(stream)
    assert "".join(pieces) == stream.answer.text
    assert stream.answer.tool_calls == ()
    assert stream.answer.finish_reason == "stop"


def test_what_a_schema_can_not_enforce_is_named_before_the_model_runs(bundled):
    with pytest.raises(SchemaError, match="uniqueItems"):
        bundled.generate("x", json_schema={"type": "array", "uniqueItems": True})


def test_a_choice_of_an_unknown_tool_is_refused(bundled):
    with pytest.raises(ToolError, match="unlock, wait"):
        bundled.generate("x", tools=TOOLS, tool_choice="open")
