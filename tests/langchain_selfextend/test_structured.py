"""Tools and structured answers: every form of schema, and what constrains the model."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from langchain_selfextend import ChatSelfExtend
from selfextend_rag import ToolError
from tests.langchain_selfextend.conftest import SMALL
from tests.llm.knowing import JOKE, knowing_llm

LONG = {**SMALL, "max_tokens": 80}
QUESTION = "The pass key is 48213. What is the pass key?"


class Size(BaseModel):
    """A size."""

    size: Literal["small", "large"]
    count: int = Field(ge=0, le=9)


class SizeDict(TypedDict):
    """A size."""

    size: Annotated[Literal["small", "large"], ..., "how large"]


SIZE_SCHEMA = {
    "title": "Size",
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}},
    "required": ["size"],
}


@tool
def measure(size: Literal["small", "large"]) -> str:
    """Measure a thing."""
    return f"it is {size}"


@tool
def weigh() -> str:
    """Weigh a thing."""
    return "1 kg"


@pytest.fixture
def long(chat):
    return ChatSelfExtend(**LONG)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Size, SizeDict, SIZE_SCHEMA])
def test_answers_obey_the_schema_in_every_form_and_method(long, schema, method):
    structured = long.with_structured_output(schema, method=method)
    answer = structured.invoke(QUESTION)
    size = answer.size if schema is Size else answer["size"]
    assert size in ("small", "large")
    assert isinstance(answer, Size if schema is Size else dict)
    assert asyncio.run(structured.ainvoke(QUESTION)) == answer


WRAPPED = [
    {"name": "size", "strict": True, "schema": SIZE_SCHEMA},
    {"type": "json_schema", "json_schema": {"name": "size", "schema": SIZE_SCHEMA}},
    {"name": "size", "description": "A size.", "parameters": SIZE_SCHEMA},
    {"type": "function", "function": {"name": "size", "parameters": SIZE_SCHEMA}},
    {"name": "size", "input_schema": SIZE_SCHEMA},
]


@dataclass
class SizeData:
    """A size."""

    size: Literal["small", "large"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", [*WRAPPED, SizeData])
def test_a_schema_is_enforced_in_the_form_of_other_interfaces(long, schema, method):
    """OpenAI's form was taken for a schema that allows anything."""
    eager = long.model_copy(update={"temperature": 0.9, "seed": 2})
    answer = eager.with_structured_output(schema, method=method).invoke(QUESTION)
    assert answer["size"] in ("small", "large")


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        ({"title": "Colour", "enum": ["red", "blue"]}, ("red", "blue")),
        ({"title": "Key", "anyOf": [{"const": 1}, {"const": True}]}, (1, True)),
        ({"title": "Two", "type": "array", "items": {"const": 2}, "maxItems": 1}, ([], [2])),
    ],
)
def test_a_schema_of_no_object_is_enforced_or_refused(long, schema, values):
    assert long.with_structured_output(schema).invoke(QUESTION) in values
    with pytest.raises(ValueError, match="is one of an object"):
        long.with_structured_output(schema, method="function_calling")


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize(
    "schema", [{"title": "x"}, {"size": "str"}, {"name": "f", "description": "x"}, {}, "Size", Size(
        size="small", count=1
    )],
)  # fmt: skip
def test_what_would_enforce_nothing_is_refused(long, schema, method):
    with pytest.raises((ValueError, TypeError), match=r"says nothing|must be a|is one of|nsupport"):
        long.with_structured_output(schema, method=method)


def test_tools_may_be_called_in_place_of_an_object(knowing):
    """They were taken and not bound."""
    either = knowing.with_structured_output(Joke, tools=[weigh_it], include_raw=True)
    called = either.invoke("Weigh the cat and the dog.")
    assert [call["args"]["what"] for call in called["raw"].tool_calls] == ["cat", "dog"]
    assert (called["parsed"], called["parsing_error"]) == (None, None)
    told = either.invoke("Tell me a joke about cats.")
    assert told["parsed"] == Joke(**json.loads(JOKE))
    with pytest.raises(ValueError, match="tools go with method='json_schema' and include_raw"):
        knowing.with_structured_output(Joke, tools=[weigh_it])


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_the_prompt_says_what_the_schema_says(long, monkeypatch, method):
    """Descriptions of fields are how people say what they want; they were not in the prompt."""

    class Thing(BaseModel):
        size: Literal["small", "large"] = Field(description="larger than a cat or not")

    prompts = []
    ids = long.llm.prompts.prompt
    monkeypatch.setattr(
        long.llm.prompts, "prompt", lambda *given: prompts.append(ids(*given)) or prompts[-1]
    )
    long.with_structured_output(Thing, method=method).invoke(QUESTION)
    assert "larger than a cat or not" in long.llm.tokenizer.decode(prompts[-1].tokens)
    if method != "function_calling":
        without = long.with_structured_output(Thing, method=method, schema_in_prompt=False)
        without.invoke(QUESTION)
        assert "larger than a cat" not in long.llm.tokenizer.decode(prompts[-1].tokens)


def test_the_raw_message_comes_too_if_wanted(long):
    got = long.with_structured_output(Size, include_raw=True).invoke(QUESTION)
    assert isinstance(got["parsed"], Size)
    assert json.loads(got["raw"].content)["size"] == got["parsed"].size
    assert got["parsing_error"] is None


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Size, SizeDict, SIZE_SCHEMA])
def test_an_answer_that_was_cut_off_is_an_error_and_not_an_object(long, schema, method):
    """The beginning of a JSON object was one object, and that of a call was None."""
    structured = long.with_structured_output(schema, method=method, max_tokens=6)
    with pytest.raises(OutputParserException, match=r"cut off after 6 tokens.*with max_tokens"):
        structured.invoke(QUESTION)
    with pytest.raises(OutputParserException, match="cut off"):
        asyncio.run(structured.ainvoke(QUESTION))
    with pytest.raises(OutputParserException, match="cut off"):
        list(structured.stream(QUESTION))
    raw = long.with_structured_output(schema, method=method, include_raw=True, max_tokens=6)
    got = raw.invoke(QUESTION)
    assert got["parsed"] is None
    assert isinstance(got["parsing_error"], OutputParserException)
    assert got["raw"].response_metadata["finish_reason"] == "length"


def test_objects_are_streamed_as_they_grow(knowing):
    schema = {
        "title": "Joke",
        "type": "object",
        "properties": {"setup": {"type": "string"}, "punchline": {"type": "string"}},
        "required": ["setup", "punchline"],
    }
    grown = list(knowing.with_structured_output(schema).stream("Tell me a joke about cats."))
    assert len(grown) > 10
    assert grown[-1] == json.loads(JOKE)


def test_a_method_that_is_not_known_is_refused(chat):
    with pytest.raises(ValueError, match="method must be one of json_schema, function_calling"):
        chat.with_structured_output(Size, method="guess")


def test_response_format_of_a_call(long):
    wanted = {"type": "json_schema", "json_schema": {"name": "size", "schema": SIZE_SCHEMA}}
    assert json.loads(long.invoke(QUESTION, response_format=wanted).content)["size"]
    assert long.invoke(QUESTION, response_format={"type": "text"}).content == "48213"
    with pytest.raises(ValueError, match=r"type of response_format must be .* got 'yaml'"):
        long.invoke(QUESTION, response_format={"type": "yaml"})


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("any", {"measure", "weigh"}),
        ("required", {"measure", "weigh"}),
        (True, {"measure", "weigh"}),
        ("weigh", {"weigh"}),
        ({"type": "function", "function": {"name": "measure"}}, {"measure"}),
    ],
)
def test_a_call_that_must_be_made_is_one_valid_call(long, choice, names):
    message = long.bind_tools([measure, weigh], tool_choice=choice).invoke(QUESTION)
    (call,) = message.tool_calls
    assert call["name"] in names
    assert call["id"]
    assert call["args"] in ({}, {"size": "small"}, {"size": "large"})
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert message.content == ""


def test_streamed_calls_are_the_same_calls(long):
    bound = long.bind_tools([measure], tool_choice="measure")
    first, *others = bound.stream(QUESTION)
    for chunk in others:
        first += chunk
    (call,) = first.tool_calls
    assert (call["name"], call["args"]) == (
        (made := bound.invoke(QUESTION).tool_calls[0])["name"],
        made["args"],
    )


@pytest.mark.parametrize("choice", ["none", False])
def test_no_call_where_none_is_wanted(long, choice):
    message = long.bind_tools([measure], tool_choice=choice).invoke(QUESTION)
    assert not message.tool_calls
    assert message.content == "48213"


@pytest.fixture(scope="module")
def knowing():
    return ChatSelfExtend(llm=knowing_llm(), max_tokens=300)


@tool("weigh")
def weigh_it(what: str) -> str:
    """Weigh a thing."""
    return f"{what}: 1 kg"


def test_several_calls_only_where_the_model_chooses_or_it_is_said(knowing):
    def weighed(**options):
        message = knowing.bind_tools([weigh_it], **options).invoke("Weigh the cat and the dog.")
        ids = [call["id"] for call in message.tool_calls]
        assert len(set(ids)) == len(ids)
        return [call["args"]["what"] for call in message.tool_calls]

    assert weighed() == ["cat", "dog"]
    assert weighed(parallel_tool_calls=False) == ["cat"]
    assert weighed(tool_choice="any") == ["cat"]
    assert weighed(tool_choice="any", parallel_tool_calls=True) == ["cat", "dog"]


def test_streamed_parallel_calls_are_kept_apart(knowing):
    first, *others = knowing.bind_tools([weigh_it]).stream("Weigh the cat and the dog.")
    for chunk in others:
        first += chunk
    assert [call["args"] for call in first.tool_calls] == [{"what": "cat"}, {"what": "dog"}]


def test_the_initial_choice_holds_until_there_is_a_result(knowing):
    eager = ChatSelfExtend(llm=knowing.llm, initial_tool_choice="any", max_tokens=60)
    question = HumanMessage("How is it?")  # to which the model would say something
    bound = eager.bind_tools([weigh])
    message = bound.invoke([question])
    assert [call["name"] for call in message.tool_calls] == ["weigh"]
    result = ToolMessage("1 kg", tool_call_id=message.tool_calls[0]["id"])
    assert not bound.invoke([question, message, result]).tool_calls
    for choice in ("auto", "none"):
        assert not eager.bind_tools([weigh], tool_choice=choice).invoke([question]).tool_calls
    assert not knowing.bind_tools([weigh]).invoke([question]).tool_calls


def test_a_choice_that_is_none_of_the_tools_is_refused(chat):
    with pytest.raises(ValueError, match="tool_choice 'run' is none of the tools measure, weigh"):
        chat.bind_tools([measure, weigh], tool_choice="run")


def test_calls_and_results_of_tools_may_be_in_the_history(long):
    call = {"name": "measure", "args": {"size": "small"}, "id": "call1", "type": "tool_call"}
    history = [
        HumanMessage("How large is it?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("it is small", tool_call_id="call1"),
        HumanMessage(QUESTION),
    ]
    bound = long.bind_tools([measure])
    message = bound.invoke(history)
    assert message.usage_metadata["input_tokens"] == long.get_num_tokens_from_messages(
        history, tools=[measure]
    )
    assert isinstance(message.content, str)


def test_a_call_that_must_be_made_and_was_cut_off_is_an_error(long):
    """Agents ended with an empty message, or asked the model to follow its own."""
    bound = long.bind_tools([measure], tool_choice="any")
    with pytest.raises(OutputParserException, match=r"cut off after 6 tokens, before its call"):
        bound.invoke(QUESTION, max_tokens=6)
    with pytest.raises(OutputParserException, match="max_tokens"):
        asyncio.run(bound.ainvoke(QUESTION, max_tokens=6))
    wanted = {"type": "json_schema", "json_schema": {"name": "size", "schema": SIZE_SCHEMA}}
    with pytest.raises(OutputParserException, match="before its object was whole"):
        long.invoke(QUESTION, response_format=wanted, max_tokens=3)


def test_a_call_that_the_model_chose_and_was_cut_off_is_reported_and_not_made(knowing):
    bound = knowing.bind_tools([weigh_it])
    message = bound.invoke("Weigh the cat and the dog.", max_tokens=20)
    assert not message.tool_calls
    assert message.response_metadata["finish_reason"] == "length"
    assert message.response_metadata["unfinished_call"]


def test_objects_have_the_properties_they_name_unless_they_say_more(knowing):
    """So everyone writes schemas; the model would say ``punchline`` too."""
    named = {"type": "object", "properties": {"setup": {"type": "string"}}, "required": ["setup"]}
    question = "Tell me a joke about cats."

    def answered(schema):
        return set(knowing.with_structured_output(schema | {"title": "Joke"}).invoke(question))

    assert answered(named) == {"setup"}
    assert answered(named | {"additionalProperties": True}) == {"setup", "punchline"}


def test_a_tool_keeps_the_schema_of_any_form(long):
    """Of OpenAI's form of a schema the name alone was left, and any arguments would do."""
    named = {"name": "size", "strict": True, "schema": SIZE_SCHEMA}
    for tool_form in (named, SIZE_SCHEMA, {"name": "size", "input_schema": SIZE_SCHEMA}):
        bound = long.bind_tools([tool_form], tool_choice="any")
        (call,) = bound.invoke(QUESTION).tool_calls
        assert call["args"]["size"] in ("small", "large")
    one = {"type": "tool", "name": "size"}  # Anthropic's
    assert long.bind_tools([named, weigh], tool_choice=one).invoke(QUESTION).tool_calls
    with pytest.raises(ValueError, match="is one of an object"):
        long.bind_tools([{"title": "Colour", "enum": ["red"]}])
    with pytest.raises(ToolError, match="a tool must be"):
        long.bind_tools([{"type": "web_search"}], tool_choice="any").invoke(QUESTION)
