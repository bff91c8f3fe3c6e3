"""How a model writes calls of tools: as a grammar to write by, and as text to read them from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from selfextend_rag.output.schema import schema_text
from selfextend_rag.output.thought import Thought

ID = "\x00"
"""Stands in the texts of a `CallForm` where a model writes an id of its own."""

_ID_PATTERN = "[a-zA-Z0-9]{9}"
_BARE = re.compile(r"\s*[\[{]\s*[\[{\"]")


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

    def written(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """Return calls as text, one after the other; for forms without ids."""
        before = [self.head, *[self.link or self.tail + self.head] * (len(calls) - 1)]
        texts = [
            f"{text}{name}{self.middle}{json.dumps(arguments, ensure_ascii=False)}"
            for text, (name, arguments) in zip(before, calls, strict=True)
        ]
        return "".join([*texts, self.tail])


def calls_grammar(
    form: CallForm,
    tools: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    forced: bool,
    parallel: bool,
    leading_space: bool = False,
    free_tokens: Sequence[int] = (),
    thought: Thought | None = None,
) -> str:
    """Return the grammar of answers that are calls, or free text that may end in calls.

    Args:
        form: how they are written.
        tools: names of tools and the schemas of their arguments.
        forced: there is no free text.
        parallel: there may be several calls.
        leading_space: allow a space before forced calls.
        free_tokens: control tokens that may stand in free text.
        thought: how a thought ends that the prompt has begun; it comes before forced calls. Free
            text may hold a thought anyway.

    Raises:
        SchemaError: a schema holds what can't be enforced; the message names the tool.
    """
    rules = [
        f"args_{i}: %json {schema_text(schema, f'the schema of tool {name!r}')}"
        for i, (name, schema) in enumerate(tools)
    ]
    split = _Literals(form.tokens)
    names = [name for name, _ in tools]

    def alternatives(before: str) -> str:
        each = (
            f"{split.written(before + name + form.middle)} args_{i}" for i, name in enumerate(names)
        )
        return " | ".join(each)

    end = split.written(form.tail)
    if parallel and form.link is not None:
        rules.append(f"next: {alternatives(form.link)}")
        end = f"next* {end}"
    if forced:
        before = '" "? ' if leading_space else ""
        if thought is not None:
            before = "thought "
            rules += thought.rules
        rules += [f"start: {before}first {end}", f"first: {alternatives(form.head)}"]
    else:
        rest = form.head.removeprefix(form.trigger)
        rules += [*_free_text(form, free_tokens), f"first: {alternatives(rest)}"]
        rules.append(f"start: text | opening first {end}")
    return "\n".join(rules)


def _free_text(form: CallForm, free_tokens: Sequence[int]) -> list[str]:
    """Return the rules of text before calls and of what begins these."""
    others = ",".join(map(str, sorted(free_tokens)))
    before = f"(TEXT <[{others}]>)* " if others else ""
    rules = [f"text: {before}TEXT"]
    if form.trigger_token is not None:
        return [*rules, r"TEXT: /(.|\n)*/", f"opening: text <[{form.trigger_token}]>"]
    if not form.bare:
        lazy = f"trigger[lazy]: TEXT {_string(form.trigger)}"
        return [*rules, r"TEXT: /(.|\n)*/", lazy, f"opening: {before}trigger"]
    # The text of an answer may begin in any way but this one.
    begun = _regex(form.trigger)
    return [
        rf"text: FIRST {f'(<[{others}]> TEXT)*' if others else ''}",
        rf"FIRST: /(.|\n)*/ & ~/{begun}(.|\n)*/",
        r"TEXT: /(.|\n)*/",
        f"opening: /{begun}/",
    ]


class _Literals:
    """Writes fixed texts for a grammar, in which control tokens are tokens."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._tokens = tokens
        longest_first = sorted([*tokens, ID], key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def written(self, text: str) -> str:
        return " ".join(self._piece(piece) for piece in self._special.split(text) if piece)

    def _piece(self, piece: str) -> str:
        if piece == ID:
            return f"/{_ID_PATTERN}/"
        return f"<[{self._tokens[piece]}]>" if piece in self._tokens else _string(piece)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(text: str) -> str:
    """Return a pattern of exactly this text; every character that may mean something is escaped."""
    return "".join(c if c.isalnum() else rf"\x{{{ord(c):x}}}" for c in text)


@dataclass(frozen=True, slots=True)
class FoundCalls:
    """Calls as they stand in a text.

    Args:
        calls: names and arguments of those that are whole.
        rest: what follows them although nothing should: the beginning of one that was cut off.
    """

    calls: tuple[tuple[str, dict[str, Any]], ...]
    rest: str


def read_calls(form: CallForm, text: str) -> FoundCalls:
    """Return the calls of a text that begins with the first one."""
    found: list[tuple[str, dict[str, Any]]] = []
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
        part if part.startswith("(") else _ID_PATTERN.join(map(re.escape, part.split(ID)))
        for part in parts
    )
    return re.compile("".join(written))
