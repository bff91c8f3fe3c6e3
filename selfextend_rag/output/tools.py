"""Tools that a model may call: what the caller asks for, checked, and the calls of an answer."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfextend_rag.errors import ToolError
from selfextend_rag.text.calls import ID, ID_PATTERN, CallForm
from selfextend_rag.text.messages import ToolCall

Tools = Sequence[Mapping[str, object]]
"""``{"type": "function", "function": {"name", "description", "parameters"}}``, each."""

ToolChoice = str | Mapping[str, object] | None
"""``"auto"``, ``"none"``, ``"required"`` (or ``"any"``), a tool's name, or
``{"type": "function", "function": {"name": ...}}``."""

_NAME = re.compile(r"[^\s\"\\\x00-\x1f<>]{1,128}")
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """What may, or must, be called."""

    tools: Tools  # all that are described to the model
    callable: Mapping[str, Mapping[str, object]]  # by name, the schemas of their arguments
    forced: bool  # the answer must be a call
    parallel: bool  # it may be several calls


def tool_request(
    tools: Tools | None, choice: ToolChoice = "auto", parallel: bool = True
) -> ToolRequest | None:
    """Return what was asked for; None where nothing may be called.

    Raises:
        ToolError: a tool or the choice is not of a form that can be used; the message says which.
    """
    tools = tuple(tools or ())
    checked = [_name_and_schema(tool) for tool in tools]
    schemas = dict(checked)
    names = [name for name, _ in checked]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ToolError(f"each tool needs a name of its own; {', '.join(twice)} came twice")
    wanted = _wanted(choice)
    if wanted == "none" or (not tools and wanted == "auto"):
        return None
    if not tools and wanted == "required":
        raise ToolError('tool_choice="required" needs tools; pass tools or leave it out')
    if wanted in ("auto", "required"):
        return ToolRequest(tools, schemas, wanted == "required", parallel)
    if wanted not in schemas:
        raise ToolError(
            f"tool_choice must be one of auto, none, required, any or a tool's name "
            f"({', '.join(schemas) or 'there are no tools'}), got {wanted!r}"
        )
    return ToolRequest(tools, {wanted: schemas[wanted]}, True, False)


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


def _name_and_schema(tool: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
    """Return the name of a tool, and the schema of its arguments."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise ToolError(
            'a tool must be {"type": "function", "function": {"name": ..., "description": ..., '
            f'"parameters": ...}}}}, got {tool!r}'
        )
    if not _NAME.fullmatch(name):
        raise ToolError(
            f"the name of a tool must be 1 to 128 characters without spaces, quotes, backslashes "
            f"and angle brackets, got {name!r}"
        )
    parameters = function.get("parameters")
    if parameters is None:
        return name, _NO_ARGUMENTS
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise ToolError(
            f'the parameters of tool {name!r} must be a JSON schema of type "object", '
            f"got {parameters!r}"
        )
    strict = function.get("strict") is not False
    return name, {**(parameters if strict else {}), "type": "object"}


def read_calls(form: CallForm, text: str) -> tuple[tuple[ToolCall, ...], str]:
    """Return the calls of a text that begins with the first one, and what follows them.

    Nothing should follow: it is the beginning of a call that was cut off.
    """
    found: list[ToolCall] = []
    place = whole = len(text) - len(text.lstrip())
    before: str | None = form.head
    while before is not None:
        named = _pattern(before, r"([^\"\s\\]+?)", form.middle).match(text, place)
        if named is None:
            break
        try:
            arguments, place = json.JSONDecoder().raw_decode(text, named.end())
        except ValueError:
            break
        linked = form.link is not None and _pattern(form.link).match(text, place)
        ended = _pattern(form.tail).match(text, place)
        if not (linked or ended) or not isinstance(arguments, dict):
            break
        letters = string.ascii_letters + string.digits  # see `ID_PATTERN`
        call_id = "".join(secrets.choice(letters) for _ in range(9))
        found.append(ToolCall(call_id, named[1], arguments))
        whole = ended.end() if ended else place
        before = form.link if linked else None
    return tuple(found), text[whole:].strip()


def _pattern(*parts: str) -> re.Pattern[str]:
    """Return a pattern of fixed texts, with groups as they are and any id for an id.

    A space may be missing, as JSON has it or not.
    """
    written = (
        part
        if part.startswith("(")
        else ID_PATTERN.join(re.escape(text).replace(r"\ ", " ?") for text in part.split(ID))
        for part in parts
    )
    return re.compile("".join(written))
