"""Prompts run on an engine, their answers as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.documents import Document
from selfextend_rag.engine import (
    Answers,
    BatchPrompt,
    CachedPrefix,
    Cancelled,
    Engine,
    GenerationSettings,
    Reserve,
    Run,
    as_tuple,
    end_tokens,
    worker_of,
)
from selfextend_rag.evidence import (
    Evidence,
    TokenRanges,
    attention_profile,
    find_evidence,
)
from selfextend_rag.evidence.watch import AttentionWatch
from selfextend_rag.llm.answers.answer import Answer, AnswerReason
from selfextend_rag.llm.answers.stream import TextStream
from selfextend_rag.llm.budget import ReadingBudget
from selfextend_rag.llm.ledger import Ledger
from selfextend_rag.output.reader import FREE, AnswerReader, OutputFormat
from selfextend_rag.planning import ContextPlan


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt with all that is needed to answer it, checked.

    Args:
        tokens: the whole prompt, a reading's included.
        options: of the answer.
        plan: the settings it runs under.
        framed: it puts a question in the prompt builder's form, whose answers end in its way.
        form: what the answer is constrained by.
    """

    tokens: tuple[int, ...]
    options: GenerationSettings
    plan: ContextPlan
    framed: bool = True
    form: OutputFormat = FREE

    @property
    def longest(self) -> int:
        """Return the most tokens that prompt and answer can have."""
        return len(self.tokens) + self.options.max_new_tokens

    def started(self) -> BatchPrompt:
        """Return what the engine runs: one answer to it."""
        grammar = self.form.grammar
        return BatchPrompt(self.tokens, self.options, None if grammar is None else grammar.start())


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where prompts begin, and how they are answered.

    Args:
        prefix: what they all begin with, and has been read.
        reuse: where to look for their beginnings otherwise.
        sources: the documents at a prompt's beginning, and what its tokens hold of them; the
            evidence of the answers is found there.
        at_once: the most answers to decode together.
        reserving: reserves the memory; by default what the longest prompt and its answer take.
    """

    prefix: CachedPrefix | None = None
    reuse: PrefixStore | None = None
    sources: tuple[Sequence[Document], TokenRanges] | None = None
    at_once: int = 1
    reserving: AbstractContextManager[Reserve] | None = None


class TextRunner:
    """Runs prompts on an engine and gives their answers as text."""

    def __init__(self, engine: Engine, budget: ReadingBudget, ledger: Ledger) -> None:
        self.engine = engine
        self.budget = budget
        self.prompts = budget.prompts
        self.ledger = ledger
        self.worker = worker_of(engine.model)

    def options(self, given: Mapping[str, Any], *, framed: bool) -> GenerationSettings:
        """Return generation settings, with the model's own end tokens and stop texts by default.

        Raises:
            TypeError: an option is none of `GenerationSettings`, nor ``also_stop``.
            ValueError: an option is out of range.
        """
        given = {"stop": self.prompts.answer_stops if framed else (), **given}
        if given.get("stop_token_ids") is None:
            end = self.prompts.codec.tokenizer.eos_token_id
            ends = dict.fromkeys((*end_tokens(self.engine.model), *(() if end is None else (end,))))
            given["stop_token_ids"] = tuple(ends)
        return generation_settings(given)

    def stream(
        self, prompt: PreparedPrompt, start: Start, run: Run, cancelled: Cancelled = None
    ) -> TextStream:
        """Queue a prompt and return its answer as it comes."""
        if start.prefix is not None:
            run = run.shifted(len(start.prefix), len(prompt.tokens))

        def work(put: Callable[[str], None], is_cancelled: Callable[[], bool]) -> Answer:
            own = replace(run, cancelled=is_cancelled)
            return self.answers([prompt], start, own, lambda _, part: put(part))[0]

        return TextStream(work, self.worker, cancelled)

    def answers(
        self,
        prompts: Sequence[PreparedPrompt],
        start: Start,
        run: Run,
        put: Callable[[int, str], None] = lambda index, part: None,
    ) -> list[Answer]:
        """Return the answers, in the order of the prompts; in the worker's thread.

        ``put`` is called with the index of a prompt and more text of its answer.

        Raises:
            ConstraintError: an answer could not be kept to its schema.
        """
        watch = AttentionWatch([len(x.tokens) for x in prompts]) if start.sources else None
        readers = [AnswerReader(self.prompts, x.options, x.form, x.framed) for x in prompts]
        parts: list[list[str]] = [[] for _ in prompts]

        def say(index: int, part: str) -> None:
            parts[index].append(part)
            if part:
                put(index, part)

        chunks = [x.plan.chunk_size for x in prompts if x.plan.chunk_size]
        with start.reserving or self._reserving(prompts, start.prefix) as reserve:
            answers = self.engine.answers(
                [prompt.started() for prompt in prompts],
                prefix=start.prefix,
                reuse=start.reuse,
                settings=prompts[0].plan.settings,
                at_once=start.at_once,
                chunk_size=min(chunks, default=None),
                run=replace(run, reserve=reserve, observer=watch),
            )
            with answers:
                for index, token in answers:
                    say(index, readers[index].push(token))
                    stopped, tokens = readers[index].stopped, len(parts[index])
                    if watch is not None:  # what completes a stop text is no part of the answer
                        watch.answers[index].answer_tokens = max(1, tokens - stopped)
                    if stopped:
                        answers[index].end()
        for index, reader in enumerate(readers):
            say(index, reader.finish())
        found = [_NO_EVIDENCE] * len(prompts)
        if watch is not None:
            found = self._evidence(watch, start)
        return [
            _answer(answers, i, prompts[i].plan, readers[i], "".join(parts[i]), found[i])
            for i in range(len(prompts))
        ]

    def _evidence(self, watch: AttentionWatch, start: Start) -> list[_Looked]:
        assert start.sources is not None
        documents, ranges = start.sources
        boxes = partial(self.prompts.picture_boxes, model=self.engine.model)
        return [
            _NO_EVIDENCE
            if mass is None
            else _Looked(
                find_evidence(mass, ranges, documents, boxes=boxes),
                attention_profile(mass, ranges, documents),
            )
            for mass in (one.mass for one in watch.answers)
        ]

    def _reserving(
        self, prompts: Sequence[PreparedPrompt], prefix: CachedPrefix | None
    ) -> AbstractContextManager[Reserve]:
        longest = max(prompts, key=lambda prompt: prompt.longest)
        most = longest.options.max_new_tokens
        plan = replace(longest.plan, turns=1, reserve_tokens=0, max_new_tokens=most)
        fresh = len(longest.tokens) - (0 if prefix is None else len(prefix))
        return self.ledger.reserving(plan, fresh, reading=prefix is not None)


def generation_settings(given: Mapping[str, Any]) -> GenerationSettings:
    """Return the settings of an answer; texts of ``also_stop`` end it as those of ``stop`` do.

    Raises:
        TypeError: an option is none of `GenerationSettings`, nor ``also_stop``.
        ValueError: an option is out of range.
    """
    fields = dict(given)
    texts = fields.pop("also_stop", ()), fields.get("stop", ())
    fields["stop"] = [text for x in texts for text in as_tuple(x)]
    if unknown := sorted(fields.keys() - GenerationSettings.__dataclass_fields__.keys()):
        known = ", ".join(sorted({*GenerationSettings.__dataclass_fields__, "also_stop"}))
        raise TypeError(f"unknown option {', '.join(unknown)}; an answer takes {known}")
    return GenerationSettings(**fields)


class _Looked(NamedTuple):
    """Where the tokens of an answer looked."""

    evidence: tuple[Evidence, ...] = ()
    attention: tuple[tuple[float, ...], ...] = ()


_NO_EVIDENCE = _Looked()


def _answer(
    answers: Answers,
    index: int,
    plan: ContextPlan,
    reader: AnswerReader,
    text: str,
    looked: _Looked,
) -> Answer:
    reason: AnswerReason | None = "stop" if reader.stopped else answers[index].finish_reason
    assert reason is not None  # it has ended
    calls, unfinished = reader.calls()
    if calls and reason == "stop":
        reason = "tool_calls"
    return Answer(text, reason, answers[index].usage, plan, calls, unfinished, *looked)
