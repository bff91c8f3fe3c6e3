"""The form of an answer, and how its tokens are read back: text, JSON, calls of tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from selfextend_rag.engine import GenerationSettings
from selfextend_rag.output.constraint import Grammar, grammars_of
from selfextend_rag.output.grammar import Thought, calls_grammar, json_grammar
from selfextend_rag.text.calls import CallForm, read_calls
from selfextend_rag.text.detokenize import Detokenizer, StopTexts
from selfextend_rag.text.prompts import PromptBuilder
from selfextend_rag.text.template import THOUGHT_END
from selfextend_rag.text.tools import ToolCall, ToolRequest, new_call_id


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What an answer must be.

    Args:
        grammar: what its tokens follow; None for free text.
        calls: how calls are written, where there may be any.
        forced: it is calls and nothing else, not even a thought.
        free_tokens: control tokens that may come in the text before calls, as those of thoughts do.
    """

    grammar: Grammar | None = None
    calls: CallForm | None = None
    forced: bool = False
    free_tokens: frozenset[int] = frozenset()


FREE = OutputFormat()


def output_format(
    prompts: PromptBuilder,
    settings: GenerationSettings,
    json_schema: Mapping[str, object] | None,
    request: ToolRequest | None,
) -> OutputFormat:
    """Return what an answer must be, its grammar compiled.

    Raises:
        SchemaError: a schema holds what can't be enforced.
        ValueError: JSON and calls are asked for at once.
    """
    if json_schema is None and request is None:
        return FREE
    if json_schema is not None and request is not None:
        raise ValueError(
            "json_schema and tools can't be asked for at once; "
            'leave one out or pass tool_choice="none"'
        )
    space = not prompts.chat  # where an answer begins after a colon
    ends = _ends(settings)
    control = grammars_of(prompts.codec.tokenizer).control_tokens(ends)
    thought = _thought(control, ends) if prompts.thinks else None
    if json_schema is not None:
        source = json_grammar(json_schema, leading_space=space, thought=thought)
        return OutputFormat(_compiled(prompts, settings, source))
    assert request is not None
    form = prompts.call_form.with_tokens(control)
    free = frozenset(control.values()) - {*ends, form.trigger_token}
    source = calls_grammar(
        form,
        [(tool.name, tool.schema) for tool in request.callable],
        forced=request.forced,
        parallel=request.parallel,
        leading_space=space,
        free_tokens=sorted(free),
        thought=thought,
    )
    at_once = request.forced and thought is None
    return OutputFormat(_compiled(prompts, settings, source), form, at_once, free)


def _thought(control: Mapping[str, int], ends: tuple[int, ...]) -> Thought:
    end = control.get(THOUGHT_END)
    return Thought(end, frozenset(control.values()) - {*ends, end})


def _ends(settings: GenerationSettings) -> tuple[int, ...]:
    return tuple(sorted(settings.stop_token_ids or ()))


def _compiled(prompts: PromptBuilder, settings: GenerationSettings, source: str) -> Grammar:
    return grammars_of(prompts.codec.tokenizer).compiled(source, _ends(settings))


class TextReader:
    """Reads an answer that is text, or JSON as a grammar let it through.

    Args:
        prompts: whose tokens they are.
        settings: the stop texts, which JSON does not have: its grammar ends it.
        form: what the answer must be.
        framed: the answer follows a colon.
    """

    def __init__(
        self, prompts: PromptBuilder, settings: GenerationSettings, form: OutputFormat, framed: bool
    ) -> None:
        constrained = form.grammar is not None
        self._detokenizer = Detokenizer(
            prompts.codec.decode,
            () if constrained else settings.stop,
            skip_leading_space=constrained or (framed and not prompts.chat),
        )
        # A thought before JSON is not shown, so that the text is the JSON.
        self._thinking = StopTexts((THOUGHT_END,)) if constrained and prompts.thinks else None
        self._raw = prompts.codec.decode_raw

    @property
    def stopped(self) -> bool:
        """Return whether a stop text has ended the answer."""
        return self._detokenizer.stopped

    def push(self, token: int) -> str:
        """Take the next token and return the text that is certain now."""
        if self._thinking is None:
            return self._detokenizer.push(token)
        self._thinking.push(self._raw([token]))
        if self._thinking.found:
            self._thinking = None
        return ""

    def finish(self) -> str:
        """Return what was held back, at the end of the answer."""
        return self._detokenizer.finish()

    def calls(self) -> tuple[tuple[ToolCall, ...], str]:
        """Return no calls."""
        return (), ""


class CallReader:
    """Reads an answer that may be, or end in, calls of tools.

    Stop texts count in the text before calls alone.

    Args:
        prompts: whose tokens they are.
        settings: the stop texts.
        form: how calls are written.
    """

    def __init__(
        self, prompts: PromptBuilder, settings: GenerationSettings, form: OutputFormat
    ) -> None:
        assert form.calls is not None
        self.stopped = False
        self._form = form.calls
        self._free_tokens = form.free_tokens
        self._raw = prompts.codec.decode_raw
        self._tokens: list[int] = []
        self._calling = form.forced
        self._detokenizer = Detokenizer(prompts.codec.decode, skip_leading_space=not prompts.chat)
        self._trigger = _trigger(self._form)
        self._stops = StopTexts(settings.stop)

    def push(self, token: int) -> str:
        """Take the next token and return the text that is certain now."""
        if self.stopped or self._calling:
            self._tokens.append(token)
            return ""
        if token == self._form.trigger_token:
            text = self._shown(self._detokenizer.finish(), final=True)
            self._calling = not self.stopped
            self._tokens = [token]
            return text
        self._tokens.append(token)
        # To the grammar a control token parts what may look joined where it is not shown.
        apart = self._trigger.rest() if token in self._free_tokens else ""
        return apart + self._shown(self._detokenizer.push(token), final=False)

    def finish(self) -> str:
        """Return what was held back, at the end of the answer."""
        if self.stopped or self._calling:
            return ""
        return self._shown(self._detokenizer.finish(), final=True)

    def calls(self) -> tuple[tuple[ToolCall, ...], str]:
        """Return the calls that are whole, and the text of one that is not."""
        if not self._calling:
            return (), ""
        text = self._raw(self._tokens)
        found = read_calls(self._form, text[max(0, text.find(self._form.trigger)) :])
        made = tuple(ToolCall(new_call_id(), *call) for call in found.calls)
        return made, found.rest

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


class _Beginning:
    """Finds a text at the very beginning of another one, with the methods of `StopTexts`."""

    def __init__(self, wanted: str) -> None:
        self.found = False
        self._wanted = wanted
        self._held = ""
        self._passed = False

    def push(self, text: str) -> str:
        """Take more text and return it unless it may still be what is looked for."""
        if self._passed:
            return text
        self._held += text
        self.found = self._held.startswith(self._wanted)
        if self.found or self._wanted.startswith(self._held):
            return ""
        self._passed = True
        return self.rest()

    def rest(self) -> str:
        """Return what is still held back, because nothing comes after it."""
        held, self._held = self._held, ""
        return "" if self.found else held


def _trigger(form: CallForm) -> StopTexts | _Beginning:
    if form.trigger_token is not None:
        return StopTexts(())
    return _Beginning(form.trigger) if form.bare else StopTexts((form.trigger,))
