"""Answers that are Pydantic objects or calls of tools: how they are asked for, and read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, TextBlock, ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.streaming_utils import process_streaming_content_incremental
from llama_index.core.program.utils import FlexibleModel
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Model
from llama_index_instrumentation import get_dispatcher

from llama_index.llms.selfextend.messages import JsonObject
from selfextend_rag import frameworks

_OF_PROGRAMS = ("tool_choice", "tool_required", "allow_parallel_tool_calls")
"""Options that the framework's own programs pass; a schema leaves nothing to choose."""

_dispatcher = get_dispatcher(__name__)


def report_start(output_cls: type[BaseModel], prompt: PromptTemplate, values: JsonObject) -> None:
    """Report to the framework that an object is asked for."""
    _dispatcher.event(
        LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=values)
    )


def report_end(found: Model) -> Model:
    """Report an object to the framework, and return it."""
    _dispatcher.event(LLMStructuredPredictEndEvent(output=found))
    return found


def object_request(
    messages: Sequence[ChatMessage], output_cls: type[BaseModel], given: JsonObject | None
) -> tuple[list[ChatMessage], JsonObject]:
    """Return messages that end with a class's JSON schema, and options that constrain to it.

    The framework's own parser would write every brace of the schema twice.
    """
    schema = output_cls.model_json_schema()
    copies = [message.model_copy(deep=True) for message in messages]  # the prompt keeps its own
    copies[-1].blocks.append(TextBlock(text=frameworks.schema_request(schema)))
    options = {name: value for name, value in (given or {}).items() if name not in _OF_PROGRAMS}
    return copies, {**options, "json_schema": schema}


def object_of(output_cls: type[Model], response: ChatResponse | None) -> Model:
    """Return the object that a whole answer is.

    Raises:
        ValueError: the answer was cut off; the message says so.
    """
    raw: Mapping[str, object] = (response.raw if response is not None else None) or {}
    text = (response.message.content if response is not None else None) or ""
    if raw.get("finish_reason") != "stop":
        raise ValueError(
            f"the answer for {output_cls.__name__} was cut off "
            f"(finish_reason {raw.get('finish_reason')!r}) after {text[-80:]!r}; "
            "allow more with max_new_tokens of the model, or max_tokens in llm_kwargs"
        )
    return output_cls.model_validate_json(text)


def growing(
    output_cls: type[Model], responses: Generator[ChatResponse, None, None]
) -> Generator[Model | FlexibleModel, None, None]:
    """Yield what is known of an object after each part of an answer, and in the end the object."""
    partial, last = None, None
    for last in responses:
        partial = process_streaming_content_incremental(last, output_cls, partial)
        yield partial
    yield object_of(output_cls, last)


async def agrowing(
    output_cls: type[Model], responses: AsyncGenerator[ChatResponse, None]
) -> AsyncGenerator[Model | FlexibleModel, None]:
    """Do as ``growing``, with the event loop free."""
    partial, last = None, None
    async for last in responses:
        partial = process_streaming_content_incremental(last, output_cls, partial)
        yield partial
    yield object_of(output_cls, last)


def calls_of(response: ChatResponse, *, required: bool) -> list[ToolSelection]:
    """Return the calls of tools that an answer asks for.

    Raises:
        ValueError: there are none, and one is required.
    """
    calls = [
        ToolSelection(
            tool_id=block.tool_call_id or "",
            tool_name=block.tool_name,
            tool_kwargs=block.tool_kwargs if isinstance(block.tool_kwargs, dict) else {},
        )
        for block in response.message.blocks
        if isinstance(block, ToolCallBlock)
    ]
    if not calls and required:
        said = response.message.content or ""
        reason = (response.raw or {}).get("finish_reason")
        raise ValueError(
            f"expected at least one tool call, got none but the text {said[:200]!r} "
            f"(finish_reason {reason!r}); ask with tool_required=True"
            + (", or allow more max_tokens" if reason == "length" else "")
        )
    return calls
