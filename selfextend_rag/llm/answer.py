"""From prompts to answers: text while the model's worker generates it, and the answer in the end.

There is one way: a prompt is prepared, then run by `TextRunner`, which passes on text as it comes.
A `TextStream` is that run as a job of the model's worker; blocking calls wait for its answer.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypedDict

from selfextend_rag import display
from selfextend_rag.cache.store import PrefixStore
from selfextend_rag.documents import Document
from selfextend_rag.engine import (
    Answers,
    BatchPrompt,
    CachedPrefix,
    Cancelled,
    Engine,
    FinishReason,
    GenerationSettings,
    Job,
    Progress,
    Reserve,
    Run,
    Usage,
    Worker,
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
from selfextend_rag.llm.budget import ReadingBudget
from selfextend_rag.llm.ledger import Ledger
from selfextend_rag.output.reader import FREE, AnswerReader, OutputFormat
from selfextend_rag.planning import ContextPlan
from selfextend_rag.text.messages import ToolCall

AnswerReason = FinishReason | Literal["tool_calls"]


class AnswerOptions(TypedDict, total=False):
    """What every way of asking takes: three options, and the fields of `GenerationSettings`."""

    json_schema: Mapping[str, object] | None
    progress: Progress | None
    cancelled: Cancelled
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    also_stop: str | Sequence[str]
    stop_token_ids: Sequence[int] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, and what it took.

    Args:
        text: the answer; the parts of its stream, joined.
        finish_reason: ``"stop"`` at its own end or a stop text, ``"length"`` when
            ``max_new_tokens`` were not enough, ``"cancelled"``, or ``"tool_calls"`` when it ends
            in calls. JSON and calls are whole after ``"stop"`` and ``"tool_calls"`` alone.
        usage: tokens and seconds.
        plan: the settings it ran under.
        tool_calls: the calls it asks for, each one whole and valid for its tool's schema.
        unfinished_call: the text of a call that was cut off, which is none of ``tool_calls``.
        evidence: passages of the documents that the model looked at while it answered, those it
            looked at most first; empty without documents, or if it was not asked for.
        attention: for each document that was read, in their order, the share of all attention that
            the answer paid to the documents in each of 200 equal slices of its text; empty where
            the evidence is. It is for pictures, and ``to_dict`` leaves it out.
    """

    text: str
    finish_reason: AnswerReason
    usage: Usage
    plan: ContextPlan
    tool_calls: tuple[ToolCall, ...] = ()
    unfinished_call: str = ""
    evidence: tuple[Evidence, ...] = ()
    attention: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    @property
    def complete(self) -> bool:
        """Return whether the answer came to its own end, and was not cut off."""
        return self.finish_reason in ("stop", "tool_calls")

    def _repr_html_(self) -> str:
        """Return the answer for a notebook, its evidence marked in what is around it."""
        used, ended = self.usage, "" if self.complete else f", ended by {self.finish_reason}"
        parts = [display.paragraph(self.text or self.unfinished_call)]
        if self.tool_calls:
            rows = [(call.name, call.arguments) for call in self.tool_calls]
            parts.append(display.table(("calls", "arguments"), rows))
        for found in self.evidence:
            where = found.location or f"characters {found.start} to {found.end}"
            source = f"{found.title or found.document_id}, {where} ({found.score:.0%})"
            parts.append(display.quotation(found.before, found.text, found.after, source))
        figures = f"{used.prompt_tokens} tokens read, {used.completion_tokens} answered{ended}"
        return display.page(*parts, display.paragraph(figures))

    def _repr_markdown_(self) -> str:
        return self._repr_html_()

    def to_dict(self) -> dict[str, object]:
        """Return the answer as JSON values."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": self.usage.to_dict(),
            "plan": self.plan.to_dict(),
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "unfinished_call": self.unfinished_call,
            "evidence": [passage.to_dict() for passage in self.evidence],
        }


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
        found = _evidence(watch, start) if watch is not None else [_NO_EVIDENCE] * len(prompts)
        return [
            _answer(answers, i, prompts[i].plan, readers[i], "".join(parts[i]), found[i])
            for i in range(len(prompts))
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


def _evidence(watch: AttentionWatch, start: Start) -> list[_Looked]:
    assert start.sources is not None
    documents, ranges = start.sources
    return [
        _NO_EVIDENCE
        if mass is None
        else _Looked(
            find_evidence(mass, ranges, documents), attention_profile(mass, ranges, documents)
        )
        for mass in (one.mass for one in watch.answers)
    ]


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


Work = Callable[[Callable[[str], None], Callable[[], bool]], Answer]
"""Is given what takes text and what says to end early; returns the answer."""


class TextStream(Iterator[str], AsyncIterator[str]):
    """Text as it comes, in parts that never end within a character or a stop text.

    The model's worker generates the answer, whether or not the text is taken. What goes wrong there
    is raised here, by the next part or by ``answer``. There is no time limit: a long prefill
    simply takes long. Closing the stream, leaving its ``with`` block or dropping it ends the work
    between two chunks or tokens, and at once if it has not begun.

    ``async for``, ``await aanswer()``, ``await aclose()`` and ``async with`` do the same while the
    event loop stays free. A task that is cancelled while it waits here ends the work, as it ends an
    asynchronous generator.

    Args:
        work: generates the answer.
        worker: of the model, or of the server.
        cancelled: the caller's own way to end it.
    """

    def __init__(self, work: Work, worker: Worker, cancelled: Cancelled = None) -> None:
        self._parts = parts = _Parts()
        # The job does not refer to the stream, so that a stream nobody holds is noticed.
        self._job = Job(worker, lambda is_cancelled: parts.collect(work, is_cancelled), cancelled)
        weakref.finalize(self, self._job.stopped.set).atexit = False
        self._reported = False

    def __next__(self) -> str:
        coming = self._parts.take()
        try:
            part = self._job.wait_for(coming)
        except BaseException:  # raised again
            coming.cancel()  # the part is left to the next caller
            raise
        if part is None:
            self._raise_once()
            raise StopIteration
        return part

    async def __anext__(self) -> str:
        part = await self._job.await_for(self._parts.take())
        if part is None:
            self._raise_once()
            raise StopAsyncIteration
        return part

    @property
    def answer(self) -> Answer:
        """Return the whole answer, waiting for its end; the text can still be taken.

        Raises:
            Exception: what ended the work, if it failed.
        """
        try:
            return self._job.wait_for(self._job.outcome)
        finally:
            del self  # as in Job.run

    def finish(self) -> Answer:
        """Return ``answer``, and close the stream if it can't be had."""
        try:
            with self:
                return self.answer
        finally:
            del self  # as in Job.run

    async def aanswer(self) -> Answer:
        """Return ``answer`` once it is there."""
        return await self._job.await_for(self._job.outcome)

    def close(self) -> None:
        """End the work and wait until the model is free; ``answer`` has what there is."""
        self._job.close()

    async def aclose(self) -> None:
        """Do as ``close``; the wait may be cancelled, the end of the work may not."""
        self._job.stop()
        await self._job.await_for(self._parts.ended)

    def _raise_once(self) -> None:
        error = self._job.outcome.exception()
        if error is not None and not self._reported:
            self._reported = True
            raise error

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> TextStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()


class _Parts:
    """Text between the worker's thread and those who take it, threads and tasks alike."""

    def __init__(self) -> None:
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # one that waits can't cancel it for others
        self._lock = threading.Lock()
        self._ready: deque[str] = deque()
        self._waiting: deque[Future[str | None]] = deque()

    def collect(self, work: Work, is_cancelled: Callable[[], bool]) -> Answer:
        """Take all text of the work and return its answer."""
        try:
            return work(self._put, is_cancelled)
        finally:
            self._end()

    def take(self) -> Future[str | None]:
        """Return what will be the next part; None at the end."""
        coming: Future[str | None] = Future()
        with self._lock:
            if self._ready:
                coming.set_result(self._ready.popleft())
            elif self.ended.done():
                coming.set_result(None)
            else:
                self._waiting.append(coming)
        return coming

    def _put(self, part: str) -> None:
        with self._lock:
            while self._waiting:
                coming = self._waiting.popleft()
                if coming.set_running_or_notify_cancel():
                    coming.set_result(part)
                    return
            self._ready.append(part)

    def _end(self) -> None:
        with self._lock:
            self.ended.set_result(None)
            for coming in self._waiting:
                if coming.set_running_or_notify_cancel():
                    coming.set_result(None)
            self._waiting.clear()
