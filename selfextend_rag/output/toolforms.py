"""How a chat template writes tools and calls: measured on the template, not listed by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import TemplateError

from selfextend_rag.output.calls import ID, CallForm

Render = Callable[..., str]
"""Renders messages, with ``tools`` and ``add_generation_prompt`` as options."""

OUR_FORM = CallForm(
    head='<tool_call>{"name": "',
    middle='", "arguments": ',
    link='}</tool_call>\n<tool_call>{"name": "',
    tail="}</tool_call>",
)
"""What models are told that know no form of their own."""

# Unlike anything that a template writes; an id is nine characters, or some templates complain.
_NAMES = ("zqfirstzq", "zqsecondzq")
_ARGUMENT, _VALUE, _QUERY, _SAID = "zqargzq", "zqvalzq", "zqqueryzq", "zqsaidzq"
_IDS = ("zqidone01", "zqidtwo02")
_ARGUMENTS = re.compile(rf'\{{\s*"{_ARGUMENT}":\s*"{_VALUE}"\s*\}}')
_THOUGHT = re.compile(r"^\s*<think>.*?</think>\s*", re.DOTALL)
_USER = {"role": "user", "content": _QUERY}
_FAILURES = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)


def measured_form(render: Render, ends: Sequence[str]) -> tuple[CallForm, bool] | None:
    """Return how a chat template writes calls, and whether it wants arguments as text.

    None where the template does not show tools to the model, or writes calls in a way that is not
    a name followed by a JSON object.

    Args:
        render: the template.
        ends: texts of tokens that end a turn.
    """
    if not _shows_tools(render):
        return None
    for as_text in (False, True):
        form = _form(render, ends, as_text)
        if form is not None:
            return form, as_text
    return None


def takes_system_text(render: Render) -> bool:
    """Return whether the template writes what a system message says."""
    try:
        return _SAID in render([{"role": "system", "content": _SAID}, _USER])
    except _FAILURES:
        return False


def _shows_tools(render: Render) -> bool:
    tool = {
        "type": "function",
        "function": {
            "name": _NAMES[0],
            "description": _SAID,
            "parameters": {"type": "object", "properties": {_ARGUMENT: {"type": "string"}}},
        },
    }
    try:
        shown = render([_USER], tools=[tool])
    except _FAILURES:
        return False
    return _NAMES[0] in shown and _ARGUMENT in shown


def _form(render: Render, ends: Sequence[str], as_text: bool) -> CallForm | None:
    turn = _turn(render, 1, as_text)
    if turn is None:
        return None
    head, found, rest = turn.partition(_NAMES[0])
    arguments = _ARGUMENTS.search(rest)
    if not found or arguments is None:
        return None
    middle, tail = rest[: arguments.start()], _until_end(rest[arguments.end() :], ends)
    head = _THOUGHT.sub("", head).lstrip()
    # The name and its arguments may come in the other order, or the name once more.
    if not head or _QUERY in head or any(name in tail for name in _NAMES):
        return None
    return CallForm(head, middle, _link(render, middle, as_text), tail.rstrip())


def _link(render: Render, middle: str, as_text: bool) -> str | None:
    """Return what a template writes between two calls; None if it takes one a turn."""
    turn = _turn(render, 2, as_text)
    if turn is None or _NAMES[0] not in turn or _NAMES[1] not in turn:
        return None
    between = turn.partition(_NAMES[0])[2].partition(_NAMES[1])[0]
    arguments = _ARGUMENTS.search(between)
    if arguments is None or between[: arguments.start()] != middle:
        return None
    return between[arguments.end() :]


def _turn(render: Render, calls: int, as_text: bool) -> str | None:
    """Return what the template writes for a turn of calls, with `ID` for their ids."""
    arguments: Any = {_ARGUMENT: _VALUE}
    if as_text:
        arguments = json.dumps(arguments)
    made = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, name in list(zip(_IDS, _NAMES, strict=True))[:calls]
    ]
    asked = {"role": "assistant", "content": "", "tool_calls": made}
    try:
        prompt = render([_USER], add_generation_prompt=True)
        whole = render([_USER, asked], add_generation_prompt=False)
    except _FAILURES:
        return None
    if not whole.startswith(prompt):
        # What opens a turn may differ by its last words, such as a thought begun for the model.
        prompt = render([_USER], add_generation_prompt=False)
        if not whole.startswith(prompt):
            return None
        opened = render([_USER], add_generation_prompt=True).removeprefix(prompt)
        shared = _shared(opened, whole.removeprefix(prompt))
        prompt += opened[:shared]
    turn = whole.removeprefix(prompt)
    for call_id in _IDS:
        turn = turn.replace(call_id, ID)
    return turn


def _shared(a: str, b: str) -> int:
    """Return how many characters two texts begin alike with."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _until_end(text: str, ends: Sequence[str]) -> str:
    places = [text.index(end) for end in ends if end and end in text]
    return text[: min(places)] if places else text
