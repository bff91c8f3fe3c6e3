"""LangChain messages to the messages of the core, and answers back; the one converter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk

from selfextend_rag import Answer, Usage, frameworks

JsonObject = dict[str, Any]
"""A message of the core, or what else is written as JSON."""

# Parts of an answer that are no text of it: its calls are in ``tool_calls``, its thoughts are not
# repeated to it.
_NO_TEXT_OF_AN_ANSWER = frozenset(
    ("tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "reasoning", "thinking")
)


def core_messages(messages: Sequence[BaseMessage], *, merge: bool = True) -> list[JsonObject]:
    """Return messages as the core takes them.

    Messages of one role in a row become one, a blank line between them, unless ``merge`` is False:
    most chat templates, and the plain form, want roles that alternate.

    Raises:
        ValueError: a message is of a kind that can't be written, or holds something besides text,
            and pictures in a human message.
    """
    converted = [_core_message(message) for message in messages]
    return frameworks.merged_messages(converted) if merge else converted


def _core_message(message: BaseMessage) -> JsonObject:
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": _text_and_pictures(message)}
    content = text_of(message)
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": content}
    if isinstance(message, AIMessage):
        calls = [
            {
                "type": "function",
                "id": call.get("id") or "",
                "function": {"name": call["name"], "arguments": call["args"]},
            }
            for call in message.tool_calls
        ]
        return {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}
    if isinstance(message, ToolMessage):
        name = {"name": message.name} if message.name else {}
        called = {"tool_call_id": message.tool_call_id}
        return {"role": "tool", "content": content, **called, **name}
    if isinstance(message, FunctionMessage):
        return {"role": "tool", "content": content, "name": message.name, "tool_call_id": ""}
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": content}
    raise ValueError(
        f"a message must be a system, human, AI, tool or chat message, got {message.type!r}"
    )


def with_schema(messages: Sequence[JsonObject], schema: JsonObject) -> list[JsonObject]:
    """Return messages of the core, the last of which, the user's, ends with a JSON schema."""
    request = frameworks.schema_request(schema)
    *before, last = messages
    if last["role"] == "user":
        return [*before, {**last, "content": frameworks.joined_content(last["content"], request)}]
    return [*messages, {"role": "user", "content": request}]


def _text_and_pictures(message: BaseMessage) -> str | list[JsonObject]:
    """Return the content of a message for the core: parts, if there are pictures among them."""
    if isinstance(message.content, str):
        return message.content
    parts: list[JsonObject] = []
    for part in message.content:
        if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
            parts.append(frameworks.picture_part(_url_of(part)))
        else:
            parts.append({"type": "text", "text": _part_text(part, message)})
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _url_of(part: JsonObject) -> str:
    """Return the URL of a picture in any of LangChain's forms; its bytes are a ``data:`` URL."""
    named = part.get("image_url", part.get("url"))
    url = named.get("url") if isinstance(named, dict) else named
    data = part.get("base64") or part.get("data")
    if isinstance(data, str):
        return f"data:{part.get('mime_type') or 'image/png'};base64,{data}"
    if isinstance(url, str):
        return url
    raise ValueError(
        'a picture is {"type": "image", "base64": ..., "mime_type": ...} or {"type": "image_url", '
        f'"image_url": {{"url": "data:..."}}}}, got one with {", ".join(sorted(part))}'
    )


def text_of(message: BaseMessage) -> str:
    """Return the text of a message, its text parts joined.

    Raises:
        ValueError: it holds something besides text, such as an image.
    """
    if isinstance(message.content, str):
        return message.content
    return "".join(_part_text(part, message) for part in message.content)


def _part_text(part: str | JsonObject, message: BaseMessage) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text")
    if part.get("type") in ("text", "text-plain") and isinstance(text, str):
        return text
    if isinstance(message, AIMessage) and part.get("type") in _NO_TEXT_OF_AN_ANSWER:
        return ""
    raise ValueError(
        f"a {message.type} message holds a part of type {part.get('type')!r}; this model reads "
        'text, so every part must be {"type": "text", "text": ...}, but for the pictures that a '
        "human message may have: leave others out, or put their text in"
    )


def usage_metadata(usage: Usage) -> UsageMetadata:
    """Return token counts in LangChain's form, with those read before as ``cache_read``."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def last_chunk(answer: Answer, model_name: str) -> AIMessageChunk:
    """Return the end of a streamed answer: its calls, its usage, how and under what it ended."""
    return AIMessageChunk(
        content="",
        tool_call_chunks=[
            tool_call_chunk(
                name=call.name,
                args=json.dumps(call.arguments, ensure_ascii=False),
                id=call.id,
                index=index,
            )
            for index, call in enumerate(answer.tool_calls)
        ],
        usage_metadata=usage_metadata(answer.usage),
        response_metadata=response_metadata(answer, model_name),
        chunk_position="last",
    )


def response_metadata(answer: Answer, model_name: str) -> JsonObject:
    """Return what is said of an answer besides its text."""
    evidence = [passage.to_dict() for passage in answer.evidence]
    return {
        **({"evidence": evidence} if evidence else {}),
        **({"unfinished_call": answer.unfinished_call} if answer.unfinished_call else {}),
        "finish_reason": "tool_calls" if answer.tool_calls else answer.finish_reason,
        "model_name": model_name,
        "model_provider": "selfextend",
        "plan": answer.plan.to_dict(),
    }
