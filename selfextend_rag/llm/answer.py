"""From prompts to answers: what every way of asking goes through."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.documents import Document
from selfextend_rag.engine import (
    Answers,
    BatchPrompt,
    CachedPrefix,
    Cancelled,
    Engine,
    GenerationSettings,
    ModelWorker,
    Run,
    worker_of,
)
from selfextend_rag.engine.run import Reserve
from selfextend_rag.evidence import AttentionWatch, TokenRanges, find_evidence
from selfextend_rag.llm.ledger import Ledger
from selfextend_rag.llm.stream import Answer, AnswerReason, TextStream
from selfextend_rag.output.reader import FREE, AnswerReader, OutputFormat
from selfextend_rag.planning import ContextPlan
from selfextend_rag.text.prompts import PromptBuilder


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt with all that is needed to answer it, checked.

    Args:
        tokens: the whole prompt, a reading's included.
        options: of the answer.
        plan: the settings it runs under.
        framed: the prompt puts a question in the form of the prompt builder.
        form: what the answer is constrained by.
    """

    tokens: tuple[int, ...]
    options: GenerationSettings
    plan: ContextPlan
    framed: bool = True
    form: OutputFormat = FREE


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """The documents at a prompt's beginning, and what its tokens hold of them."""

    documents: tuple[Document, ...]
    ranges: TokenRanges


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where prompts begin, and how they are answered.

    Args:
        prefix: what they all begin with, and has been read.
        reuse: where to look for their beginnings otherwise.
        sources: finds the evidence of the answers in these.
        at_once: the most answers to decode together.
        reserving: reserves the memory; by default what the longest prompt and its answer take.
    """

    prefix: CachedPrefix | None = None
    reuse: PrefixStore | None = None
    sources: Sources | None = None
    at_once: int = 1
    reserving: AbstractContextManager[Reserve] | None = None


class TextRunner:
    """Runs prompts on an engine and gives their answers as text.

    Args:
        engine: the model.
        prompts: its prompts and their tokens.
        ledger: what memory there is for them.
    """

    def __init__(self, engine: Engine, prompts: PromptBuilder, ledger: Ledger) -> None:
        self.engine = engine
        self.prompts = prompts
        self.ledger = ledger

    @property
    def worker(self) -> ModelWorker:
        """Return what runs all calls on the model, in their order."""
        return worker_of(self.engine.model)

    def options(self, given: Mapping[str, object], *, framed: bool) -> GenerationSettings:
        """Return generation settings, with the model's own end tokens and stop texts by default.

        Args:
            given: fields of `GenerationSettings`, and ``also_stop``: stop texts besides ``stop``.
            framed: the prompt puts a question in the form of ``prompts``, whose answers end in
                that form's way.

        Raises:
            TypeError: an option is none of `GenerationSettings`.
            ValueError: an option is out of range.
        """
        default_stop = self.prompts.answer_stops if framed else ()
        fields: dict[str, Any] = {"stop": default_stop, **given}
        also_stop = fields.pop("also_stop", ())
        options = GenerationSettings(**fields)
        if also_stop:
            also = (also_stop,) if isinstance(also_stop, str) else tuple(also_stop)
            options = replace(options, stop=(*also, *options.stop))
        if options.stop_token_ids is not None:
            return options
        end = self.prompts.codec.tokenizer.eos_token_id
        ends = dict.fromkeys((*self.engine.end_tokens(), *(() if end is None else (end,))))
        return replace(options, stop_token_ids=tuple(ends))

    def stream(
        self, prompt: PreparedPrompt, start: Start, run: Run, cancelled: Cancelled = None
    ) -> TextStream:
        """Queue a prompt and return its answer as it comes.

        Args:
            prompt: the prompt.
            start: where it begins.
            run: what the caller wants to hear of it.
            cancelled: the caller's own way to end it.
        """
        if start.prefix is not None:
            run = run.shifted(len(start.prefix), len(prompt.tokens))

        def work(is_cancelled: Callable[[], bool]) -> Generator[str, None, Answer]:
            parts = self._answering([prompt], start, replace(run, cancelled=is_cancelled))
            while True:
                try:
                    _, part = next(parts)
                except StopIteration as end:
                    answers: list[Answer] = end.value
                    return answers[0]
                yield part

        return TextStream(work, self.worker, cancelled)

    def answers(self, prompts: Sequence[PreparedPrompt], start: Start, run: Run) -> list[Answer]:
        """Return the answers, in the order of the prompts; in the worker's thread.

        Raises:
            ConstraintError: an answer could not be kept to its schema.
        """
        parts = self._answering(prompts, start, run)
        while True:
            try:
                next(parts)
            except StopIteration as end:
                answers: list[Answer] = end.value
                return answers

    def _answering(
        self, prompts: Sequence[PreparedPrompt], start: Start, run: Run
    ) -> Generator[tuple[int, str], None, list[Answer]]:
        """Yield text of each answer until its tokens end or a stop text does; return all."""
        sources = start.sources
        watch = None if sources is None else AttentionWatch([len(x.tokens) for x in prompts])
        reserving = start.reserving or self._reserving(prompts, start.prefix)
        texts = [_Text(self.prompts, prompt) for prompt in prompts]
        with reserving as reserve:
            answers = self.engine.answers(
                [
                    BatchPrompt(
                        x.tokens,
                        x.options,
                        None if x.form.grammar is None else x.form.grammar.start(),
                    )
                    for x in prompts
                ],
                prefix=start.prefix,
                reuse=start.reuse,
                settings=prompts[0].plan.settings,
                at_once=start.at_once,
                chunk_size=min(
                    (x.plan.chunk_size for x in prompts if x.plan.chunk_size), default=None
                ),
                run=replace(run, reserve=reserve, observer=watch),
            )
            with answers:
                for index, token in answers:
                    text = texts[index]
                    part = text.push(token)
                    if watch is not None:
                        watch.answers[index].answer_tokens = text.tokens
                    if text.stopped:
                        answers.stop(index)
                    if part:
                        yield index, part
        for index, text in enumerate(texts):
            if rest := text.finish():
                yield index, rest
        found = [
            find_evidence(one.mass, sources.ranges, sources.documents)
            if sources is not None and one.mass is not None
            else ()
            for one in ([] if watch is None else watch.answers)
        ]
        return [
            replace(text.answer(answers, index), evidence=found[index] if found else ())
            for index, text in enumerate(texts)
        ]

    def _reserving(
        self, prompts: Sequence[PreparedPrompt], prefix: CachedPrefix | None
    ) -> AbstractContextManager[Reserve]:
        longest = max(prompts, key=lambda x: len(x.tokens) + x.options.max_new_tokens)
        plan = replace(
            longest.plan,
            turns=1,
            reserve_tokens=0,
            max_new_tokens=longest.options.max_new_tokens,
        )
        fresh = len(longest.tokens) - (0 if prefix is None else len(prefix))
        return self.ledger.reserving(plan, fresh, reading=prefix is not None)


class _Text:
    """The text of one answer, from its tokens."""

    def __init__(self, prompts: PromptBuilder, prompt: PreparedPrompt) -> None:
        self._plan = prompt.plan
        self._reader = AnswerReader(prompts, prompt.options, prompt.form, prompt.framed)
        self._parts: list[str] = []
        self.tokens = 0  # without the one that completes a stop text, which is no part of it

    @property
    def stopped(self) -> bool:
        """Return whether a stop text has ended it."""
        return self._reader.stopped

    def push(self, token: int) -> str:
        """Return what a token adds."""
        self._parts.append(self._reader.push(token))
        self.tokens = max(1, len(self._parts) - self._reader.stopped)
        return self._parts[-1]

    def finish(self) -> str:
        """Return what was held back, which is the end."""
        self._parts.append(self._reader.finish())
        return self._parts[-1]

    def answer(self, answers: Answers, index: int) -> Answer:
        """Return the whole answer, once it has ended."""
        reason: AnswerReason | None = "stop" if self.stopped else answers.finish_reason(index)
        assert reason is not None
        calls, unfinished = self._reader.calls()
        return Answer(
            text="".join(self._parts),
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            usage=answers.usage(index),
            plan=self._plan,
            tool_calls=calls,
            unfinished_call=unfinished,
        )
