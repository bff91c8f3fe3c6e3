"""How a model writes calls of tools: read off what its chat template does with some."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

ID = "\x00"
"""An id of the model's own, in the texts of a `CallForm`."""

ID_PATTERN = "[a-zA-Z0-9]{9}"  # what the templates of Mistral insist on; others take anything
_BARE = re.compile(r"\s*[\[{]\s*[\[{\"]")

Render = Callable[..., str | None]
"""Renders messages, with ``tools`` and ``add_generation_prompt`` as options; None if it can't."""

# Unlike anything that a template writes; an id is nine characters, or some templates refuse it.
_NAMES = ("zqfirstzq", "zqsecondzq")
_ARGUMENT, _VALUE, _QUERY, _SAID = "zqargzq", "zqvalzq", "zqqueryzq", "zqsaidzq"
_IDS = ("zqidone01", "zqidtwo02")
_ARGUMENTS = re.compile(rf'\{{\s*"{_ARGUMENT}":\s*"{_VALUE}"\s*\}}')
_THOUGHT = re.compile(r"^\s*<think>.*?</think>\s*", re.DOTALL)
_USER = {"role": "user", "content": _QUERY}


@dataclass(frozen=True, slots=True)
class CallForm:
    """The texts around the names and arguments of calls.

    A call or several are written ``head name middle arguments``, then for each further one
    ``link name middle arguments``, and ``tail`` at the end; arguments are a JSON object.
    """

    head: str
    middle: str
    link: str | None  # None where a turn has one call
    tail: str
    tokens: Mapping[str, int] = field(default_factory=dict)  # control tokens in these texts

    def with_tokens(self, tokens: Mapping[str, int]) -> CallForm:
        """Return the form with those of a vocabulary's control tokens that occur in its texts."""
        texts = self.head + self.middle + (self.link or "") + self.tail
        return replace(self, tokens={text: i for text, i in tokens.items() if text in texts})

    @property
    def trigger(self) -> str:
        """Return the text that begins calls: a control token, or all up to a space."""
        token = next((text for text in self.tokens if self.head.startswith(text)), None)
        return self.head.split(maxsplit=1)[0] if token is None else token

    @property
    def trigger_token(self) -> int | None:
        """Return the control token that begins calls, if one does."""
        return self.tokens.get(self.trigger)

    @property
    def bare(self) -> bool:
        """Return whether calls begin as any JSON might, so only at the start of an answer."""
        return self.trigger_token is None and _BARE.match(self.head) is not None

    def written(self, calls: Sequence[tuple[str, Mapping[str, object]]]) -> str:
        """Return calls as text, one after the other; for forms without ids."""
        before = [self.head, *[self.link or self.tail + self.head] * (len(calls) - 1)]
        texts = [
            f"{text}{name}{self.middle}{json.dumps(arguments, ensure_ascii=False)}"
            for text, (name, arguments) in zip(before, calls, strict=True)
        ]
        return "".join([*texts, self.tail])


OUR_FORM = CallForm(
    head='<tool_call>{"name": "',
    middle='", "arguments": ',
    link='}</tool_call>\n<tool_call>{"name": "',
    tail="}</tool_call>",
)
"""The form described to models that know none of their own."""


def measured_form(render: Render, end: str | None) -> tuple[CallForm, bool] | None:
    """Return how a chat template writes calls, and whether it takes arguments as text.

    None where the template does not show tools to the model, or writes calls in a way that is not
    a name followed by a JSON object. ``end`` is the text of the token that ends a turn.
    """
    properties = {_ARGUMENT: {"type": "string"}}
    parameters = {"type": "object", "properties": properties}
    function = {"name": _NAMES[0], "description": _SAID, "parameters": parameters}
    shown = render([_USER], tools=[{"type": "function", "function": function}]) or ""
    if _NAMES[0] not in shown or _ARGUMENT not in shown:
        return None
    forms = ((_form(render, end, as_text), as_text) for as_text in (False, True))
    return next(((form, as_text) for form, as_text in forms if form is not None), None)


def _form(render: Render, end: str | None, as_text: bool) -> CallForm | None:
    turn = _turn(render, 1, as_text)
    head, found, rest = (turn or "").partition(_NAMES[0])
    arguments = _ARGUMENTS.search(rest)
    if not found or arguments is None:
        return None
    middle, tail = rest[: arguments.start()], rest[arguments.end() :]
    tail = tail.partition(end)[0] if end else tail
    head = _THOUGHT.sub("", head).lstrip()
    # The name and its arguments may come in the other order, or the name once more.
    if not head or _QUERY in head or any(name in tail for name in _NAMES):
        return None
    return CallForm(head, middle, _link(render, middle, as_text), tail.rstrip())


def _link(render: Render, middle: str, as_text: bool) -> str | None:
    """Return what a template writes between two calls; None if it takes one a turn."""
    turn = _turn(render, 2, as_text) or ""
    between, found, _ = turn.partition(_NAMES[0])[2].partition(_NAMES[1])
    arguments = _ARGUMENTS.search(between)
    if not found or arguments is None or between[: arguments.start()] != middle:
        return None
    return between[arguments.end() :]


def _turn(render: Render, calls: int, as_text: bool) -> str | None:
    """Return what the template writes for a turn of calls, with `ID` for their ids."""
    arguments = json.dumps({_ARGUMENT: _VALUE}) if as_text else {_ARGUMENT: _VALUE}
    made = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, name in list(zip(_IDS, _NAMES, strict=True))[:calls]
    ]
    asked = {"role": "assistant", "content": "", "tool_calls": made}
    opened = render([_USER], add_generation_prompt=True)
    whole = render([_USER, asked], add_generation_prompt=False)
    if opened is None or whole is None:
        return None
    turn = whole.removeprefix(opened)
    if not whole.startswith(opened):
        # What opens a turn may differ by its last words, such as a thought begun for the model.
        before = render([_USER], add_generation_prompt=False)
        if before is None or not whole.startswith(before):
            return None
        turn, opening = whole.removeprefix(before), opened.removeprefix(before)
        shared = next(n for n in range(len(opening), -1, -1) if turn.startswith(opening[:n]))
        turn = turn[shared:]
    for call_id in _IDS:
        turn = turn.replace(call_id, ID)
    return turn
