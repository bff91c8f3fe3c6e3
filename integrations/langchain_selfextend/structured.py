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
    RunnableBranch,
    RunnableGenerator,
    RunnableParallel,
)
from langchain_core.runnables.passthrough import RunnableAssign
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import TypeAdapter
from typing_extensions import is_typeddict

from langchain_selfextend.messages import JsonObject
from selfextend_rag import frameworks

OutputSchema = JsonObject | type
ToolSchema = JsonObject | type | Callable[..., object] | BaseTool
_NAMED_IN = ("json_schema", "function", "toolSpec")
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
        return PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()  # type: ignore[arg-type]  # a class of either pydantic
    if is_class:
        return PydanticToolsParser(tools=[schema], first_tool_only=True)  # type: ignore[list-item]  # a class of either pydantic
    return JsonOutputKeyToolsParser(
        key_name=tool_of(schema)["function"]["name"], first_tool_only=True
    )


def converted(tool: ToolSchema) -> JsonObject:
    """Return a tool in OpenAI's form; of a dictionary with a schema, all of that schema."""
    if isinstance(tool, Mapping) and {"schema", "json_schema", "title"} & tool.keys():
        return tool_of(tool)
    return convert_to_openai_tool(tool)


def tool_of(schema: OutputSchema) -> JsonObject:
    """Return a schema as a tool in OpenAI's form.

    Raises:
        ValueError: a dictionary is none of an object, or has no name.
    """
    if not isinstance(schema, Mapping):
        if not isinstance(schema, type) or is_basemodel_subclass(schema) or is_typeddict(schema):
            return convert_to_openai_tool(schema)
        schema = {"title": schema.__name__, **TypeAdapter(schema).json_schema()}
    named: JsonObject = dict(schema)
    while isinstance(inner := next((named[x] for x in _NAMED_IN if x in named), None), Mapping):
        named = dict(inner)
    name, parameters = named.get("name") or named.get("title"), dict(json_schema_of(schema))
    is_object = parameters.get("type") == "object" or bool(
        {"properties", "$ref"} & parameters.keys()
    )
    if not isinstance(name, str) or not is_object:
        raise ValueError(
            'a schema for method="function_calling" has a name, its "title" or the "name" next to '
            f"it, and is one of an object; got {schema!r}; other values can be had with "
            'method="json_schema"'
        )
    described = {"name": name, "description": str(named.get("description", ""))}
    return {"type": "function", "function": {**described, "parameters": parameters}}


def json_schema_of(schema: OutputSchema) -> JsonObject:
    """Return a schema as JSON schema, a Pydantic class's with all of its constraints.

    Raises:
        ValueError: it is none, in no form that is known; then nothing would be enforced.
    """
    if isinstance(schema, type) and hasattr(schema, "model_json_schema"):
        described: JsonObject = schema.model_json_schema()
        return described
    if isinstance(schema, Mapping) and (found := frameworks.schema_of(schema)):
        return dict(found)
    if not isinstance(schema, type):
        raise ValueError(
            "a schema must be a Pydantic class, a TypedDict, a dataclass or a dictionary, got "
            f"{schema!r}"
        )
    if is_basemodel_subclass(schema) or is_typeddict(schema):  # Pydantic's of its first version
        return convert_to_json_schema(schema)
    return TypeAdapter(schema).json_schema()


def schema_of_response_format(response_format: OutputSchema) -> JsonObject | None:
    """Return the JSON schema that a ``response_format`` asks for; None for plain text.

    Raises:
        ValueError: it is of a type that is not known, or no schema.
    """
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if isinstance(response_format, Mapping) and kind != "json_schema":
        raise ValueError(
            'the type of response_format must be "text", "json_object" or "json_schema", got '
            f"{kind!r}"
        )
    return json_schema_of(response_format)


def unless_called(reader: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """Return a reader that makes nothing of a message with calls."""
    return RunnableBranch((_has_calls, _nothing), reader)


def _has_calls(message: BaseMessage) -> bool:
    return bool(getattr(message, "tool_calls", None))


def parsed(
    model: Runnable[LanguageModelInput, Any], reader: Runnable[Any, Any], include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """Return the model with its answers as objects, and as they were if ``include_raw``.

    An answer that was cut off is an `OutputParserException`: the parsers of JSON would make an
    object of its beginning, and those of calls None of it.
    """
    parser = RunnableGenerator(_until_cut_off, _auntil_cut_off) | reader
    if not include_raw:
        return model | parser
    # What RunnablePassthrough.assign makes can't be pickled.
    right = RunnableAssign(
        RunnableParallel(parsed=itemgetter("raw") | parser, parsing_error=_nothing)
    )
    wrong = RunnableAssign(RunnableParallel(parsed=_nothing))
    return RunnableParallel(raw=model) | right.with_fallbacks(
        [wrong], exception_key="parsing_error"
    )


def _nothing(_: object) -> None:
    """Give no value; a function with a name, so that chains can be pickled."""


def _until_cut_off(chunks: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
    for chunk in chunks:
        yield _checked(chunk)


async def _auntil_cut_off(chunks: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
    async for chunk in chunks:
        yield _checked(chunk)


def _checked(chunk: BaseMessage) -> BaseMessage:
    if chunk.response_metadata.get("finish_reason") == "length":
        usage = getattr(chunk, "usage_metadata", None) or {}
        begun = chunk.text or chunk.response_metadata.get("unfinished_call")
        raise cut_off("object", usage.get("output_tokens"), begun)
    return chunk


def cut_off(what: str, tokens: int | None, begun: str | None) -> OutputParserException:
    """Return the error for what an answer had to hold, and ``max_tokens`` did not let it."""
    return OutputParserException(
        f"the answer was cut off after {tokens} tokens, before its {what} was whole; allow more "
        "with max_tokens",
        llm_output=begun,
    )
