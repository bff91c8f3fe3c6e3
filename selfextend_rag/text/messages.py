"""Conversations as messages and as text: roles, calls of tools and their results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xxhash

from selfextend_rag.output.toolforms import OUR_FORM
from selfextend_rag.output.tools import PastCall, Tool, past_calls
from selfextend_rag.text.packing import BREAK

_ANSWER = "\nAnswer:"
_AGAIN = {"user": f"{BREAK}Question: ", "assistant": f"{_ANSWER} "}
_SHORT = re.compile("[a-zA-Z0-9]{9}")
Message = Mapping[str, Any]
"""A chat message with ``role`` and ``content``: text, or a list of text parts. An assistant's may
have ``tool_calls``, and one of role ``tool`` has the result of one, named by ``tool_call_id``."""


def text_of(message: Message) -> str:
    """Return the text of a message.

    Raises:
        ValueError: it holds anything but text.
    """
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    ):
        return "".join(str(part.get("text", "")) for part in content)
    raise ValueError(f"the content of a message must be text, got {content!r}")


def normalised(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages with text as content, checked calls, and results with their tool's name.

    Raises:
        ValueError: a message is not of a kind that can be written.
    """
    names: dict[str, str] = {}
    done: list[dict[str, Any]] = []
    for message in messages:
        entry = {**message, "content": text_of(message)}
        entry.pop("tool_calls", None)
        if calls := past_calls(message):
            entry["tool_calls"] = calls
            names |= {call.id: call.name for call in calls}
        if message.get("role") == "tool":
            found = message.get("name") or names.get(str(message.get("tool_call_id")))
            entry |= {"name": found} if found else {}
        done.append(entry)
    return done


def for_template(
    messages: Sequence[Message], *, arguments_as_text: bool, guard: Callable[[str], str]
) -> list[dict[str, Any]]:
    """Return normalised messages for a template that knows calls; every text goes by ``guard``."""

    def call(made: PastCall) -> dict[str, Any]:
        arguments: Any = made.arguments
        if arguments_as_text:
            arguments = json.dumps(arguments, ensure_ascii=False)
        function = guarded({"name": made.name, "arguments": arguments}, guard)
        return {"id": _short(made.id), "type": "function", "function": function}

    written = []
    for message in messages:
        entry = {**message, "content": guard(message["content"])}
        if "tool_calls" in message:
            entry["tool_calls"] = [call(made) for made in message["tool_calls"]]
        if "tool_call_id" in message:
            entry["tool_call_id"] = _short(str(message["tool_call_id"]))
        if "name" in message:
            entry["name"] = guard(str(message["name"]))
        written.append(entry)
    return written


def _short(call_id: str) -> str:
    """Return an id as every template takes it: nine letters and digits, which some insist on."""
    if _SHORT.fullmatch(call_id):
        return call_id
    return xxhash.xxh3_64_hexdigest(call_id.encode())[:9]


def guarded(value: Any, guard: Callable[[str], str]) -> Any:
    """Return JSON values with every text in them, names of fields too, gone by ``guard``."""
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, Mapping):
        return {guard(str(key)): guarded(item, guard) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [guarded(item, guard) for item in value]
    return value


def tools_text(tools: Sequence[Tool]) -> str:
    """Return a description of tools for a model that knows no form of its own."""
    described = [
        json.dumps(dict(tool.definition["function"]), ensure_ascii=False) for tool in tools
    ]
    form = OUR_FORM.written([("name of the tool", {})]).replace("{}", "{its arguments}")
    return "\n".join(
        [
            "You can call these tools, each described by a JSON object:",
            *described,
            f"To call a tool, answer with {form} and nothing else.",
        ]
    )


def without_calls(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages for a template that knows no calls: as text of assistant and user."""
    written: list[dict[str, Any]] = []
    for message in messages:
        role, text = message.get("role"), message["content"]
        if role == "tool":
            role, text = "user", _result(message)
        elif "tool_calls" in message:
            text = _with_calls(text, message["tool_calls"])
        # Templates may insist that user and assistant take turns.
        if written and role == "user" and written[-1]["role"] == "user":
            written[-1]["content"] += BREAK + text
        else:
            written.append({"role": role, "content": text})
    return written


def with_system_text(
    messages: Sequence[Message], text: str, *, own_message: bool
) -> list[dict[str, Any]]:
    """Return messages with a text before all that the first system or user message says."""
    first, *rest = [dict(message) for message in messages]
    if first.get("role") == "system" or (first.get("role") == "user" and not own_message):
        return [{**first, "content": f"{text}{BREAK}{first['content']}"}, *rest]
    return [{"role": "system" if own_message else "user", "content": text}, first, *rest]


def with_system_in_user(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages for a template that writes no system text: it begins the user's message."""
    first, *rest = [dict(message) for message in messages]
    if not rest or rest[0].get("role") != "user":
        return [first, *rest]
    user = {**rest[0], "content": f"{first['content']}{BREAK}{rest[0]['content']}"}
    return [user, *rest[1:]]


def plain_conversation(messages: Sequence[Message]) -> str:
    """Return normalised messages in the plain form.

    Raises:
        ValueError: the roles do not follow one another as questions and answers do.
    """
    parts: list[str] = []
    waiting = False  # for an answer, to a question or to the results of calls
    previous: Any = None
    for message in messages:
        role, text = message.get("role"), message["content"]
        if role == "user":
            if previous == "tool":
                parts[-1] = parts[-1].removesuffix(_ANSWER)
            parts.append(f"Question: {text}{_ANSWER}")
            waiting = True
        elif role == "assistant" and waiting:
            parts[-1] += f" {_with_calls(text, message.get('tool_calls', ()))}"
            waiting = False
        elif role == "system":
            parts.append(text)
        elif role == "tool" and previous == "tool":
            parts[-1] = f"{parts[-1].removesuffix(_ANSWER)}{BREAK}{_result(message)}{_ANSWER}"
        elif role == "tool" and previous == "assistant":
            parts.append(_result(message) + _ANSWER)
            waiting = True
        else:
            raise ValueError(
                f"the plain form has no place for a message of role {role!r} here; "
                "use a model with a chat template"
            )
        previous = role
    if not waiting:
        raise ValueError("the last message must be the user's, or the result of a call")
    return BREAK.join(parts)


def conversation_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return questions and answers about documents in strict alternation, a question first.

    Messages of one role in a row become one; before an answer that nobody asked for comes an empty
    question.

    Raises:
        ValueError: a message is neither the user's nor an answer in words.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        role, text = message.get("role"), text_of(message)
        if role not in ("user", "assistant") or message.get("tool_calls"):
            raise ValueError(
                f"a history may hold messages of roles user and assistant, got one of role "
                f"{role!r}{' with calls of tools' if message.get('tool_calls') else ''}; leave "
                "system messages, calls of tools and their results out"
            )
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += _AGAIN[role] + text
            continue
        if not turns and role == "assistant":
            turns.append({"role": "user", "content": ""})
        turns.append({"role": role, "content": text})
    return turns


def plain_turns(turns: Sequence[Message]) -> str:
    """Return what ``conversation_turns`` returns in the plain form, up to the next answer."""
    written = [
        f" {turn['content']}{BREAK}"
        if turn["role"] == "assistant"
        else f"Question: {turn['content']}{_ANSWER}"
        for turn in turns
    ]
    return "".join(written)


def _result(message: Message) -> str:
    name = message.get("name")
    return f"Result of {name}: {message['content']}" if name else f"Result: {message['content']}"


def _with_calls(text: str, calls: Sequence[PastCall]) -> str:
    if not calls:
        return text
    written = OUR_FORM.written([(call.name, call.arguments) for call in calls])
    return f"{text}\n{written}" if text else written
