"""Answers that are objects: from a schema to a call that is constrained, and back from its text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import (
    BaseOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
)
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import (
    Runnable,
    RunnableGenerator,
    RunnableMap,
    RunnablePassthrough,
)
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from langchain_selfextend.messages import JsonObject

OutputSchema = JsonObject | type
ToolSchema = JsonObject | type | Callable[..., object] | BaseTool
_METHODS = ("json_schema", "function_calling", "json_mode")


def parser_of(schema: OutputSchema, method: str) -> BaseOutputParser[Any]:
    """Return what makes an object of a message, by a method of ``with_structured_output``.

    Raises:
        ValueError: the method is not known.
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    # mypy does not see what is_class says of the schema: hence what is ignored below.
    if method != "function_calling":
        return PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()  # type: ignore[arg-type]
    if is_class:
        return PydanticToolsParser(tools=[schema], first_tool_only=True)  # type: ignore[list-item]
    return JsonOutputKeyToolsParser(key_name=tool_name_of(schema), first_tool_only=True)


def tool_name_of(schema: OutputSchema) -> str:
    """Return the name of a schema as a tool."""
    return str(convert_to_openai_tool(schema)["function"]["name"])


def json_schema_of(schema: OutputSchema) -> JsonObject:
    """Return a schema as JSON schema, a Pydantic class's with all of its constraints."""
    if isinstance(schema, type) and hasattr(schema, "model_json_schema"):
        described: JsonObject = schema.model_json_schema()
        return described
    if isinstance(schema, Mapping) and ("properties" in schema or "$ref" in schema):
        return dict(schema)
    return convert_to_json_schema(schema)


def schema_of_response_format(response_format: JsonObject) -> JsonObject | None:
    """Return the JSON schema that OpenAI's ``response_format`` asks for; None for plain text.

    Raises:
        ValueError: it is of a type that is not known.
    """
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        schema: JsonObject = response_format["json_schema"]["schema"]
        return schema
    raise ValueError(
        f'the type of response_format must be "text", "json_object" or "json_schema", got {kind!r}'
    )


def parsed(
    model: Runnable[LanguageModelInput, Any], reader: BaseOutputParser[Any], include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """Return the model with its answers as objects, and as they were if ``include_raw``.

    An answer that was cut off is an `OutputParserException`: the parsers of JSON would make an
    object of its beginning, and those of calls None of it.
    """
    parser = RunnableGenerator(_until_cut_off, _auntil_cut_off) | reader
    if not include_raw:
        return model | parser
    right = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    wrong = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | right.with_fallbacks([wrong], exception_key="parsing_error")


def _until_cut_off(chunks: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    for chunk in chunks:
        yield _checked(chunk)


async def _auntil_cut_off(chunks: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    async for chunk in chunks:
        yield _checked(chunk)


def _checked(chunk: BaseMessage) -> BaseMessage:
    if chunk.response_metadata.get("finish_reason") != "length":
        return chunk
    usage = getattr(chunk, "usage_metadata", None) or {}
    raise OutputParserException(
        f"the answer was cut off after {usage.get('output_tokens')} tokens, before its object was "
        "whole; allow more with max_tokens",
        llm_output=chunk.text or chunk.response_metadata.get("unfinished_call"),
    )
