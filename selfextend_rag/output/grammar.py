"""What answers may be, as grammars of llguidance: JSON for a schema, and calls of tools."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llguidance import LLMatcher

from selfextend_rag.output.schema import schema_text
from selfextend_rag.text.calls import ID, ID_PATTERN, CallForm
from selfextend_rag.text.template import THOUGHT_END


@dataclass(frozen=True, slots=True)
class Thought:
    """How a thought is ended.

    Args:
        end_token: the token of ``THOUGHT_END``, where the vocabulary has one that is no text to a
            grammar.
        free_tokens: other control tokens, which may come in a thought.
    """

    end_token: int | None
    free_tokens: Collection[int] = ()

    @property
    def rules(self) -> list[str]:
        """Return the rules of ``thought``: any text, its end, and a little white space."""
        others = ",".join(map(str, sorted(self.free_tokens)))
        before = f"(THOUGHT <[{others}]>)* " if others else ""
        space = r"THOUGHT_SPACE: /[ \n]{0,2}/"
        text = r"THOUGHT: /(.|\n)*/"
        if self.end_token is not None:
            rule = f"thought: {before}THOUGHT <[{self.end_token}]> THOUGHT_SPACE"
            return [rule, text, space]
        ended = f"thought_end[lazy]: THOUGHT {json.dumps(THOUGHT_END)}"
        return [f"thought: {before}thought_end THOUGHT_SPACE", ended, text, space]


def json_grammar(
    schema: Mapping[str, object],
    *,
    leading_space: bool = False,
    thought: Thought | None = None,
) -> str:
    """Return the grammar of the JSON texts that a schema allows, for ``Grammars.compiled``.

    Args:
        schema: a JSON schema.
        leading_space: allow a space before the JSON, as where an answer begins after a colon.
        thought: how a thought ends that the prompt has begun; it comes before the JSON.

    Raises:
        SchemaError: it is no JSON schema, or holds what can't be enforced or be satisfied.
    """
    source = schema_text(schema)
    if thought is not None:
        return "\n".join([*thought.rules, f"start: thought %json {source}"])
    if leading_space:
        return LLMatcher.grammar_from_lark(f'start: " "? %json {source}')
    return LLMatcher.grammar_from_json_schema(source)


def calls_grammar(
    form: CallForm,
    tools: Sequence[tuple[str, Mapping[str, object]]],
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
        free_tokens: control tokens that may occur in free text.
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
        return " ".join(self._symbol(part) for part in self._special.split(text) if part)

    def _symbol(self, part: str) -> str:
        if part == ID:
            return f"/{ID_PATTERN}/"
        return f"<[{self._tokens[part]}]>" if part in self._tokens else _string(part)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(text: str) -> str:
    """Return a pattern of exactly this text; every character that may mean something is escaped."""
    return "".join(c if c.isalnum() else rf"\x{{{ord(c):x}}}" for c in text)
