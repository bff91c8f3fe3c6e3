"""The form of an answer, and how its tokens are read back: text, JSON, calls of tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfextend_rag.engine import GenerationSettings
from selfextend_rag.output.grammar import (
    Grammar,
    calls_grammar,
    grammars_of,
    json_grammar,
    thought_rules,
)
from selfextend_rag.output.tools import ToolRequest, read_calls
from selfextend_rag.text.calls import CallForm
from selfextend_rag.text.codec import Detokenizer
from selfextend_rag.text.messages import ToolCall
from selfextend_rag.text.prompts import PromptBuilder
from selfextend_rag.text.template import THOUGHT_END


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What an answer must be."""

    grammar: Grammar | None = None  # None for free text
    calls: CallForm | None = None  # how they are written, where there may be any
    forced: bool = False  # it is calls and nothing else, not even a thought
    free_tokens: frozenset[int] = frozenset()  # control tokens in text before calls, as of thoughts
    is_json: bool = False  # what is no calls is JSON, and not free text


FREE = OutputFormat()


def output_format(
    prompts: PromptBuilder,
    settings: GenerationSettings,
    json_schema: Mapping[str, object] | None,
    request: ToolRequest | None,
) -> OutputFormat:
    """Return what an answer must be, its grammar compiled.

    Where there are tools and a schema, the model calls tools or answers with JSON for the schema; a
    call that it must make comes instead of the JSON.

    Raises:
        SchemaError: a schema holds what can't be enforced.
    """
    if json_schema is None and request is None:
        return FREE
    space = not prompts.chat  # where an answer begins after a colon
    ends = tuple(sorted(settings.stop_token_ids or ()))
    grammars = grammars_of(prompts.codec.tokenizer)
    control = grammars.control_tokens(ends)
    thought: list[str] = []
    if prompts.thinks:
        end = control.get(THOUGHT_END)
        thought = thought_rules(end, set(control.values()) - {*ends, end})
    if request is None:
        assert json_schema is not None
        source = json_grammar(json_schema, leading_space=space, thought=thought)
        return OutputFormat(grammars.compiled(source, ends), is_json=True)
    form = prompts.call_form.with_tokens(control)
    instead = None if request.forced else json_schema
    free = frozenset(control.values()) - {*ends, form.trigger_token}
    free = frozenset() if instead is not None else free
    source = calls_grammar(
        form, request, instead=instead, leading_space=space, free_tokens=free, thought=thought
    )
    at_once = request.forced and not thought
    return OutputFormat(grammars.compiled(source, ends), form, at_once, free, instead is not None)


class StopTexts:
    """Finds the stop text that is complete first in a text that arrives in chunks.

    Where several are complete at the same character, the longest counts. With ``at_start`` they
    count at the very beginning of the text alone.
    """

    def __init__(self, texts: Sequence[str], *, at_start: bool = False) -> None:
        self.found = False
        self._texts = sorted(texts, key=len, reverse=True)
        self._at_start = at_start
        self._held = ""

    def push(self, text: str) -> str:
        """Take more text and return what can't be part of a stop text any more."""
        held = self._held + text
        if self._at_start:
            self._texts = [x for x in self._texts if held.startswith(x) or x.startswith(held)]
        ends = [(held.find(stop) + len(stop), -len(stop)) for stop in self._texts if stop in held]
        if ends:
            end, minus_length = min(ends)
            self.found, self._held = True, ""
            return held[: end + minus_length]
        keep = max((_overlap(held, stop) for stop in self._texts), default=0)
        certain = len(held) - keep
        self._held = held[certain:]
        return held[:certain]

    def rest(self) -> str:
        """Return what is still held back, because nothing comes after it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that a stop text begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class AnswerReader:
    """Reads an answer as its tokens come: its text, and the calls of tools that end it.

    Stop texts count in the text before calls alone, and not in JSON, which its grammar ends. A
    thought before JSON is not shown, so that the text is the JSON. Framed, an answer follows a
    colon in the plain form.
    """

    def __init__(
        self, prompts: PromptBuilder, settings: GenerationSettings, form: OutputFormat, framed: bool
    ) -> None:
        self.stopped = False
        is_json = form.is_json
        self._form = form
        self._codec = prompts.codec
        self._tokens: list[int] = []
        self._calling = form.forced
        self._thinking = StopTexts((THOUGHT_END,)) if is_json and prompts.thinks else None
        # A stop text such as a line end must not end an answer that has not begun.
        self._detokenizer = Detokenizer(
            prompts.codec.decode, skip_leading_space=is_json or (framed and prompts.skips_space)
        )
        self._stops = StopTexts(() if is_json else settings.stop)
        calls = form.calls
        self._trigger_token = None if calls is None else calls.trigger_token
        in_text = () if calls is None or calls.trigger_token is not None else (calls.trigger,)
        at_start = is_json or (calls is not None and calls.bare)
        self._trigger = StopTexts(in_text, at_start=at_start)

    def push(self, token: int) -> str:
        """Take the next token and return the text that is certain now."""
        if self._thinking is not None:
            self._thinking.push(self._codec.decode([token], special=True))
            if self._thinking.found:
                self._thinking = None
            return ""
        if self.stopped or self._calling:
            self._tokens.append(token)
            return ""
        if token == self._trigger_token:
            text = self._shown(self._detokenizer.finish(), final=True)
            self._calling = not self.stopped
            self._tokens = [token]
            return text
        self._tokens.append(token)
        # To the grammar a control token parts what may look joined where it is not shown.
        apart = self._trigger.rest() if token in self._form.free_tokens else ""
        return apart + self._shown(self._detokenizer.push(token), final=False)

    def finish(self) -> str:
        """Return what was held back, at the end of the answer."""
        if self._calling and self._form.is_json and self._form.calls is not None:
            # JSON may begin as a call does that has no mark of its own.
            self._calling = not self._form.calls.bare or bool(self.calls()[0])
            if not self._calling:
                return self._codec.decode(self._tokens).lstrip()
        if self.stopped or self._calling:
            return ""
        return self._shown(self._detokenizer.finish(), final=True)

    def calls(self) -> tuple[tuple[ToolCall, ...], str]:
        """Return the calls that are whole, and the text of one that is not."""
        if self._form.calls is None or not self._calling:
            return (), ""
        text = self._codec.decode(self._tokens, special=True)
        start = max(0, text.find(self._form.calls.trigger))
        return read_calls(self._form.calls, text[start:])

    def _shown(self, text: str, *, final: bool) -> str:
        before = self._trigger.push(text)
        self._calling = self._trigger.found
        if final:
            before += self._trigger.rest()
        shown = self._stops.push(before)
        if not self._stops.found and (final or self._calling):
            shown += self._stops.rest()
        if self._stops.found:
            self.stopped, self._calling = True, False
        return shown
