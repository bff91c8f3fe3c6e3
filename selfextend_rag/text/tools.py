"""Tools that a model may call: what was asked for, checked, and the calls it made."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfextend_rag.errors import ToolError

Tools = Sequence[Mapping[str, object]]
"""``{"type": "function", "function": {"name", "description", "parameters"}}``, each."""

ToolChoice = str | Mapping[str, object] | None
"""``"auto"``, ``"none"``, ``"required"`` (or ``"any"``), a tool's name, or
``{"type": "function", "function": {"name": ...}}``."""

_NAME = re.compile(r"[^\s\"\\\x00-\x1f<>]{1,128}")
_ID_LENGTH = 9  # what the templates of Mistral insist on; others take anything
_ANY_OBJECT: Mapping[str, object] = {"type": "object"}
_NO_ARGUMENTS: Mapping[str, object] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model asks for.

    Args:
        id: unique to the call; the message with its result names it.
        name: the tool.
        arguments: what to call it with; valid for its schema.
    """

    id: str
    name: str
    arguments: dict[str, object]

    def to_dict(self) -> dict[str, object]:
        """Return the call as JSON values."""
        return {"id": self.id, "name": self.name, "arguments": self.arguments}


def new_call_id() -> str:
    """Return an id that no other call has."""
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(_ID_LENGTH))


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool, checked.

    Args:
        definition: as it was given.
        function: the part of it that describes the function.
        name: its name.
        schema: the schema of its arguments.
    """

    definition: Mapping[str, object]
    function: Mapping[str, object]
    name: str
    schema: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """What may, or must, be called.

    Args:
        tools: all that are described to the model.
        callable: those that this answer may call.
        forced: the answer must be a call.
        parallel: it may be several calls.
    """

    tools: tuple[Tool, ...]
    callable: tuple[Tool, ...]
    forced: bool
    parallel: bool


def tool_request(
    tools: Tools | None, choice: ToolChoice = "auto", parallel: bool = True
) -> ToolRequest | None:
    """Return what was asked for; None where nothing may be called.

    Raises:
        ToolError: a tool or the choice is not of a form that can be used; the message says which.
    """
    checked = tuple(_tool(definition) for definition in tools or ())
    names = [tool.name for tool in checked]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ToolError(f"each tool needs a name of its own; {', '.join(twice)} came twice")
    wanted = _wanted(choice)
    if wanted == "none" or (not checked and wanted == "auto"):
        return None
    if wanted in ("auto", "required"):
        if not checked:
            raise ToolError('tool_choice="required" needs tools; pass tools or leave it out')
        return ToolRequest(checked, checked, wanted == "required", parallel)
    chosen = tuple(tool for tool in checked if tool.name == wanted)
    if not chosen:
        raise ToolError(
            f"tool_choice must be one of auto, none, required, any or a tool's name "
            f"({', '.join(names) or 'there are no tools'}), got {wanted!r}"
        )
    return ToolRequest(checked, chosen, True, False)


def _wanted(choice: ToolChoice) -> str:
    if choice is None:
        return "auto"
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        if not isinstance(name, str):
            raise ToolError(
                f'tool_choice must name a tool as {{"function": {{"name": ...}}}}, got {choice!r}'
            )
        return name
    if not isinstance(choice, str):
        raise ToolError(f"tool_choice must be a string or a dictionary, got {choice!r}")
    return "required" if choice == "any" else choice


def _tool(definition: Mapping[str, object]) -> Tool:
    function = definition.get("function") if isinstance(definition, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise ToolError(
            'a tool must be {"type": "function", "function": {"name": ..., "description": ..., '
            f'"parameters": ...}}}}, got {definition!r}'
        )
    if not _NAME.fullmatch(name):
        raise ToolError(
            f"the name of a tool must be 1 to 128 characters without spaces, quotes, backslashes "
            f"and angle brackets, got {name!r}"
        )
    return Tool(definition, function, name, _argument_schema(function, name))


def _argument_schema(function: Mapping[str, object], name: str) -> Mapping[str, object]:
    parameters = function.get("parameters")
    if parameters is None:
        return _NO_ARGUMENTS
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise ToolError(
            f'the parameters of tool {name!r} must be a JSON schema of type "object", '
            f"got {parameters!r}"
        )
    if function.get("strict") is False:
        return _ANY_OBJECT
    return {**parameters, "type": "object"}


@dataclass(frozen=True, slots=True)
class PastCall:
    """A call in the history of a conversation."""

    id: str
    name: str
    arguments: dict[str, object]


def past_calls(message: Mapping[str, object]) -> list[PastCall]:
    """Return the calls of an assistant's message, in OpenAI's form.

    Raises:
        ToolError: a call has no name, or its arguments are no JSON object.
    """
    calls = message.get("tool_calls") or ()
    return [_past_call(call) for call in (calls if isinstance(calls, Sequence) else [calls])]


def _past_call(call: object) -> PastCall:
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
    return PastCall(str(given.get("id") or ""), name, dict(arguments))
