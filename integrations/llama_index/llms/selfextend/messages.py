"""LlamaIndex's messages and responses to and from the core's; the one place that says how.

A stream of the core becomes a response: whole, part by part, and both awaited.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from selfextend_rag import Answer, TextStream, frameworks

JsonObject = dict[str, Any]
"""A message of the core, options, or what else is written as JSON."""

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
    MessageRole.TOOL: "tool",
}
_WITHOUT_TEXT = (CachePoint, ThinkingBlock)
"""Blocks that a prompt does without: earlier thoughts, and hints for caches of others."""


def core_messages(messages: Sequence[ChatMessage]) -> list[JsonObject]:
    """Return messages as the core takes them.

    The texts of a message are joined by line ends, as its ``content`` joins them; pictures stay
    between them.

    Raises:
        ValueError: a message holds something else than text, pictures and tool calls.
    """
    return [_core_message(message) for message in messages]


def _core_message(message: ChatMessage) -> JsonObject:
    role = _ROLES[message.role]
    parts: list[JsonObject] = []
    calls = list(_legacy_calls(message))
    for block in message.blocks:
        if isinstance(block, TextBlock):
            again = any(part["type"] == "text" for part in parts)
            parts.append({"type": "text", "text": "\n" * again + block.text})
        elif isinstance(block, ImageBlock):
            parts.append(frameworks.picture_part(_picture_in(block)))
        elif isinstance(block, ToolCallBlock):
            called = {"name": block.tool_name, "arguments": block.tool_kwargs}
            calls.append({"id": block.tool_call_id or "", "type": "function", "function": called})
        elif not isinstance(block, _WITHOUT_TEXT):
            raise ValueError(
                f"this model reads text and pictures, and a message of role {role!r} holds "
                f"a block of type {type(block).__name__}; give its text as a TextBlock, or leave "
                "it out"
            )
    content: str | list[JsonObject] = parts
    if all(part["type"] == "text" for part in parts):
        content = "".join(part["text"] for part in parts)
    written: JsonObject = {"role": role, "content": content}
    if calls:
        written["tool_calls"] = calls
    if role == "tool":
        named = message.additional_kwargs
        written |= {key: named[key] for key in ("tool_call_id", "name") if named.get(key)}
    return written


def _picture_in(block: ImageBlock) -> bytes | str:
    """Return the bytes of a picture, or its URL."""
    if isinstance(block.image, bytes):  # which are base64
        return base64.b64decode(block.image)
    if block.image is not None:
        block.image.seek(0)
        read: bytes = block.image.read()
        return read
    return block.path.read_bytes() if block.path is not None else str(block.url)


def _legacy_calls(message: ChatMessage) -> Sequence[Mapping[str, object]]:
    """Return calls that another integration wrote besides the blocks, in OpenAI's form."""
    if any(isinstance(block, ToolCallBlock) for block in message.blocks):
        return []
    calls = message.additional_kwargs.get("tool_calls") or []
    return [call if isinstance(call, Mapping) else call.model_dump() for call in calls]


def completion(
    text: str, delta: str | None, answer: Answer | None, model: str
) -> CompletionResponse:
    """Return a completion, or a part of one; figures once the answer is whole."""
    return CompletionResponse(text=text, delta=delta, **_figures(answer, model))


def chat_response(text: str, delta: str | None, answer: Answer | None, model: str) -> ChatResponse:
    """Return a chat response, or a part of one; tool calls and figures once it is whole."""
    calls = [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments))
        for call in ([] if answer is None else answer.tool_calls)
    ]
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=text), *calls])
    return ChatResponse(message=message, delta=delta, **_figures(answer, model))


def _figures(answer: Answer | None, model: str) -> JsonObject:
    if answer is None:
        return {}
    counted = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {
        "raw": {"model": model, **answer.to_dict()},
        "additional_kwargs": {name: getattr(answer.usage, name) for name in counted},
    }


_R = TypeVar("_R", CompletionResponse, ChatResponse)
Respond = Callable[[str, str | None, Answer | None, str], _R]
"""Makes a response of the text so far, the new part, the answer once whole, and a model's name."""


def collected(stream: TextStream, respond: Respond[_R], model: str) -> _R:
    """Return the response to a whole answer."""
    with stream:
        return respond(stream.answer.text, None, stream.answer, model)


async def acollected(stream: TextStream, respond: Respond[_R], model: str) -> _R:
    """Do as ``collected``, with the event loop free."""
    async with stream:
        answer = await stream.aanswer()
    return respond(answer.text, None, answer, model)


def parts(stream: TextStream, respond: Respond[_R], model: str) -> Generator[_R, None, None]:
    """Yield a response for each part, and one with the figures when the answer is whole."""
    text = ""
    with stream:
        for part in stream:
            text += part
            yield respond(text, part, None, model)
        yield respond(stream.answer.text, "", stream.answer, model)


async def aparts(stream: TextStream, respond: Respond[_R], model: str) -> AsyncGenerator[_R, None]:
    """Do as ``parts``, with the event loop free; ending early ends the work."""
    text = ""
    async with stream:
        async for part in stream:
            text += part
            yield respond(text, part, None, model)
        answer = await stream.aanswer()
        yield respond(answer.text, "", answer, model)
