"""How calls of tools are written: the form, measured on a chat template, and back to calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jinja2 import TemplateError

ID = "\x00"
"""Stands for an id of the model's own in the texts of a `CallForm`."""

ID_PATTERN = "[a-zA-Z0-9]{9}"
_BARE = re.compile(r"\s*[\[{]\s*[\[{\"]")

Render = Callable[..., str]
"""Renders messages, with ``tools`` and ``add_generation_prompt`` as options."""

# Unlike anything that a template writes; an id is nine characters, or some templates complain.
_NAMES = ("zqfirstzq", "zqsecondzq")
_ARGUMENT, _VALUE, _QUERY, _SAID = "zqargzq", "zqvalzq", "zqqueryzq", "zqsaidzq"
_IDS = ("zqidone01", "zqidtwo02")
_ARGUMENTS = re.compile(rf'\{{\s*"{_ARGUMENT}":\s*"{_VALUE}"\s*\}}')
_THOUGHT = re.compile(r"^\s*<think>.*?</think>\s*", re.DOTALL)
_USER = {"role": "user", "content": _QUERY}
_FAILURES = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)


@dataclass(frozen=True, slots=True)
class CallForm:
    """The texts around the names and arguments of calls.

    A call or several are written ``head name middle arguments``, then for each further one
    ``link name middle arguments``, and ``tail`` at the end; arguments are a JSON object.

    Args:
        head: before the first name.
        middle: between a name and its arguments.
        link: between the arguments of a call and the next name; None where a turn has one call.
        tail: after the last arguments.
        tokens: control tokens that occur in these texts, with their ids.
    """

    head: str
    middle: str
    link: str | None
    tail: str
    tokens: Mapping[str, int] = field(default_factory=dict)

    def with_tokens(self, tokens: Mapping[str, int]) -> CallForm:
        """Return the form with those of a vocabulary's control tokens that occur in its texts."""
        texts = self.head + self.middle + (self.link or "") + self.tail
        return replace(self, tokens={text: i for text, i in tokens.items() if text in texts})

    @property
    def trigger(self) -> str:
        """Return the text that begins calls: a control token, or all up to a space."""
        token = self._token_at_start
        if token is not None:
            return token
        return re.match(r"\S+", self.head)[0]  # type: ignore[index]  # not blank: it matches

    @property
    def trigger_token(self) -> int | None:
        """Return the control token that begins calls, if one does."""
        token = self._token_at_start
        return None if token is None else self.tokens[token]

    @property
    def bare(self) -> bool:
        """Return whether calls begin as any JSON might, so only at the start of an answer."""
        return self._token_at_start is None and _BARE.match(self.head) is not None

    @property
    def _token_at_start(self) -> str | None:
        return next((text for text in self.tokens if self.head.startswith(text)), None)

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


@dataclass(frozen=True, slots=True)
class FoundCalls:
    """Calls found in a text.

    Args:
        calls: names and arguments of those that are whole.
        rest: what follows them although nothing should: the beginning of one that was cut off.
    """

    calls: tuple[tuple[str, dict[str, object]], ...]
    rest: str


def read_calls(form: CallForm, text: str) -> FoundCalls:
    """Return the calls of a text that begins with the first one."""
    found: list[tuple[str, dict[str, object]]] = []
    place = len(text) - len(text.lstrip())
    whole = place
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
        found.append((named[1], arguments))
        whole = ended.end() if ended else place
        before = form.link if linked else None
    return FoundCalls(tuple(found), text[whole:].strip())


def _pattern(*parts: str) -> re.Pattern[str]:
    """Return a pattern of fixed texts, with groups as they are and any id for an id."""
    written = (
        part if part.startswith("(") else ID_PATTERN.join(map(re.escape, part.split(ID)))
        for part in parts
    )
    return re.compile("".join(written))


def measured_form(render: Render, ends: Sequence[str]) -> tuple[CallForm, bool] | None:
    """Return how a chat template writes calls, and whether it takes arguments as text.

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
    arguments: object = {_ARGUMENT: _VALUE}
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
