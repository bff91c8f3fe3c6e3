"""Conversations as messages: their texts, calls of tools and results, made ready to be written."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import unquote_to_bytes

import xxhash

from selfextend_rag.documents import Picture
from selfextend_rag.documents.pictures.reader import picture_of
from selfextend_rag.errors import DocumentError, ToolError
from selfextend_rag.text.calls import ID_PATTERN, OUR_FORM

BREAK = "\n\n"
# How questions, and answers, about documents continue one another.
_AGAIN = {"user": f"{BREAK}Question: ", "assistant": "\nAnswer: "}
_READ = ("role", "content", "tool_calls", "name")  # fields that `Turn` has of its own

Message = Mapping[str, object]
"""A chat message with ``role`` and ``content``: text, or a list of parts. A part is
``{"type": "text", "text": ...}`` or, of a user to a vision model, ``{"type": "image", "image":
...}`` with a `Picture` or the bytes of a file, or OpenAI's ``image_url`` with a ``data:`` URL. An
assistant's may have ``tool_calls``, and one of role ``tool`` has the result of one, named by
``tool_call_id``."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool.

    Args:
        id: unique to the call; the message with its result names it.
        name: the tool.
        arguments: what to call it with; in an answer they are valid for its schema.
    """

    id: str
    name: str
    arguments: dict[str, object]

    def to_dict(self) -> dict[str, object]:
        """Return the call as JSON values."""
        return {"id": self.id, "name": self.name, "arguments": self.arguments}


@dataclass(frozen=True, slots=True)
class Turn:
    """A message whose text and calls were read."""

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    name: str = ""  # the tool whose result it is, or what else the message names
    more: Mapping[str, object] = field(default_factory=dict)  # for a template that knows them
    pictures: tuple[Picture, ...] = ()  # in order, each before the character where it starts


def turns_of(messages: Sequence[Message], *, pictures: bool = False) -> list[Turn]:
    """Return messages with text as content, checked calls, and results with their tool's name.

    Args:
        messages: in OpenAI's form.
        pictures: whether a user's messages may hold some.

    Raises:
        DocumentError: a message has a picture where it may not, or one that can't be decoded.
        ToolError: a call has no name, or its arguments are no JSON object.
        ValueError: a message holds anything but text and pictures.
    """
    names: dict[str, str] = {}
    turns: list[Turn] = []
    for message in messages:
        given = message.get("tool_calls") or ()
        calls = tuple(map(_past_call, given if isinstance(given, Sequence) else [given]))
        names |= {call.id: call.name for call in calls}
        role, name = message.get("role"), message.get("name")
        if role == "tool":
            name = name or names.get(str(message.get("tool_call_id")))
        more = {key: value for key, value in message.items() if key not in _READ}
        role = role if isinstance(role, str) else ""
        text, seen = _content_of(message, role, pictures)
        turns.append(Turn(role, text, calls, str(name or ""), more, seen))
    return turns


def _content_of(message: Message, role: str, pictures: bool) -> tuple[str, tuple[Picture, ...]]:
    """Return the text of a message, and its pictures."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or "", ()
    text, found = "", list[Picture]()
    for given in content if isinstance(content, Sequence) else [content]:
        part: Mapping[str, object] = given if isinstance(given, Mapping) else {}
        kind = part.get("type")
        if kind == "text":
            text += str(part.get("text", ""))
        elif kind in ("image", "image_url"):
            _check_may_look(role, pictures)
            found.append(replace(_picture_of(part), start=len(text)))
        else:
            shown = repr(given) if kind is None else f"a part of type {kind!r}"
            raise ValueError(f"the content of a message must be text and pictures, got {shown}")
    return text, tuple(found)


def _check_may_look(role: str, pictures: bool) -> None:
    if not pictures:
        raise DocumentError(
            f"a message of role {role!r} has a picture, and text alone is read here; load a vision "
            "model to look at it, or put what it says into the text"
        )
    if role != "user":
        raise DocumentError(
            f"a message of role {role!r} has a picture, and those are a user's; put it into a "
            "message of role 'user'"
        )


def _picture_of(part: Mapping[str, object]) -> Picture:
    """Return the picture of a part of a message."""
    given = part.get("image")
    if isinstance(given, Picture):
        return given
    if isinstance(given, bytes):
        return picture_of(given)
    named = part.get("image_url", part.get("url"))
    url = named.get("url") if isinstance(named, Mapping) else named
    if not isinstance(url, str):
        raise ValueError(
            'a picture is {"type": "image", "image": its bytes} or {"type": "image_url", '
            f'"image_url": {{"url": "data:..."}}}}, got one with {", ".join(map(str, part))}'
        )
    return picture_of(data_of_url(url))


def data_of_url(url: str) -> bytes:
    """Return the bytes in a ``data:`` URL; nothing is ever fetched.

    Raises:
        DocumentError: it is another URL, or its base64 is damaged.
    """
    head, comma, body = url.partition(",")
    if not url.startswith("data:") or not comma:
        raise DocumentError(
            "a picture comes with its bytes, as data:image/png;base64,..., and is not fetched from "
            f"{url[:80]!r}; download it and send that"
        )
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DocumentError(
            f"the base64 of a picture is damaged: {error}; send it again"
        ) from error


def _past_call(call: object) -> ToolCall:
    """Return a call of an assistant's message, in OpenAI's form."""
    given = call if isinstance(call, Mapping) else {}
    function = given.get("function", given)
    named = function if isinstance(function, Mapping) else {}
    name, arguments = named.get("name"), named.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise ToolError(
                f"the arguments of a call of {name!r} in the history are no JSON: {error}"
            ) from error
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise ToolError(
            'a call in the history must be {"id": ..., "type": "function", "function": {"name": '
            f'..., "arguments": ...}}}} with an object as arguments, got {call!r}'
        )
    return ToolCall(str(given.get("id") or ""), name, dict(arguments))


def question_and_history(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]]]:
    """Return a conversation on documents as ``Reading.ask`` takes it: its question and history.

    Messages of one role in a row become one; an answer without a question before it follows an
    empty one.

    Raises:
        ValueError: the last message is not the user's, or one is no question and no answer in text.
    """
    roles: list[str] = []
    said: list[str] = []
    for turn in turns_of(messages):
        if turn.role not in _AGAIN or turn.calls:
            raise ValueError(
                f"a history may hold messages of roles user and assistant, got one of role "
                f"{turn.role!r}{' with calls of tools' if turn.calls else ''}; leave system "
                "messages, calls of tools and their results out"
            )
        if roles and roles[-1] == turn.role:
            said[-1] += _AGAIN[turn.role] + turn.content
            continue
        if not roles and turn.role == "assistant":
            roles, said = ["user"], [""]
        roles.append(turn.role)
        said.append(turn.content)
    if not roles or roles[-1] != "user":
        raise ValueError(
            "a conversation about documents has a question of the user at its end, got "
            f"{', '.join(roles) or 'nothing'}"
        )
    return said[-1], list(zip(said[:-1:2], said[1::2], strict=True))


def for_template(
    turns: Sequence[Turn], *, arguments_as_text: bool, guard: Callable[[str], str]
) -> list[dict[str, object]]:
    """Return turns as a chat template takes them, with every text in them passed to ``guard``."""

    def call(made: ToolCall) -> object:
        arguments = guarded(made.arguments, guard)
        if arguments_as_text:
            arguments = guard(json.dumps(made.arguments, ensure_ascii=False))
        function = {"name": guard(made.name), "arguments": arguments}
        return {"id": _short(made.id), "type": "function", "function": function}

    written = []
    for turn in turns:
        entry = {**turn.more, "role": turn.role, "content": guard(turn.content)}
        if turn.calls:
            entry["tool_calls"] = [call(made) for made in turn.calls]
        if "tool_call_id" in entry:
            entry["tool_call_id"] = _short(str(entry["tool_call_id"]))
        if turn.name:
            entry["name"] = guard(turn.name)
        written.append(entry)
    return written


def _short(call_id: str) -> str:
    """Return an id as every template takes it: nine letters and digits, which some insist on."""
    if re.fullmatch(ID_PATTERN, call_id):
        return call_id
    return xxhash.xxh3_64_hexdigest(call_id.encode())[:9]


def guarded(value: object, guard: Callable[[str], str]) -> object:
    """Return JSON values with every text in them, names of fields too, passed to ``guard``."""
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, Mapping):
        return {guard(str(key)): guarded(item, guard) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [guarded(item, guard) for item in value]
    return value


def tools_text(tools: Sequence[Mapping[str, object]]) -> str:
    """Return a description of tools for a model that knows no form of its own."""
    form = OUR_FORM.written([("name of the tool", {})]).replace("{}", "{its arguments}")
    return "\n".join(
        [
            "You can call these tools, each described by a JSON object:",
            *(json.dumps(tool["function"], ensure_ascii=False, default=dict) for tool in tools),
            f"To call a tool, answer with {form} and nothing else.",
        ]
    )


def calls_as_text(turns: Sequence[Turn], *, results_as_user: bool = False) -> list[Turn]:
    """Return turns in which calls and the names of results are part of the text.

    A template without tools has the results as the user's.
    """
    done: list[Turn] = []
    for turn in turns:
        role, text = turn.role, turn.content
        if role == "tool":
            text = f"Result of {turn.name}: {text}" if turn.name else f"Result: {text}"
            role = "user" if results_as_user else role
        elif turn.calls:
            written = OUR_FORM.written([(call.name, call.arguments) for call in turn.calls])
            text = f"{text}\n{written}" if text else written
        # Templates may insist that user and assistant alternate.
        if results_as_user and done and role == done[-1].role == "user":
            text = done.pop().content + BREAK + text
        done.append(Turn(role, text))
    return done


def with_system_text(turns: Sequence[Turn], text: str, *, own_message: bool) -> list[Turn]:
    """Return turns with a text before all that the first system or user message says."""
    first, *rest = turns
    if first.role == "system" or (first.role == "user" and not own_message):
        return [replace(first, content=f"{text}{BREAK}{first.content}"), *rest]
    return [Turn("system" if own_message else "user", text), first, *rest]
