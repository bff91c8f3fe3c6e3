"""Documents that were read once, to be asked many times."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfextend_rag.cache import persist
from selfextend_rag.cache.cache import bytes_by_device
from selfextend_rag.documents import Document
from selfextend_rag.engine import CachedPrefix, Cancelled, Job, Progress, Run, rows
from selfextend_rag.errors import GenerationCancelled, SelfExtendError
from selfextend_rag.llm.answer import PreparedPrompt, Sources, Start, TextRunner
from selfextend_rag.llm.budget import ReadingBudget
from selfextend_rag.llm.saved import (
    attachment_of,
    check_prompts,
    reading_fingerprint,
)
from selfextend_rag.llm.stream import Answer, TextStream
from selfextend_rag.output.reader import output_format
from selfextend_rag.planning import ContextPlan
from selfextend_rag.text.prompts import Prompt, prompt_state

BatchQuestion = str | Mapping[str, Any]
"""A question, or the arguments that ``Reading.ask`` would take for it, the question among them."""

_OF_THE_BATCH = ("evidence", "progress", "cancelled")  # arguments of ``ask`` that it has once


class Reading:
    """Documents as a model has read them; made by ``LongContextLLM.read``.

    It may be asked from several threads, which wait for each other; each question starts from the
    documents alone.

    Attributes:
        documents: what was read.
        plan: the settings it was read under, and the space left for questions.
        seconds: how long the reading took.
    """

    def __init__(
        self,
        runner: TextRunner,
        budget: ReadingBudget,
        documents: Sequence[Document],
        plan: ContextPlan,
        prefix: CachedPrefix,
        seconds: float,
        packed: Prompt | None = None,
    ) -> None:
        self.documents = tuple(documents)
        self.plan = plan
        self.seconds = seconds
        self._runner = runner
        self._budget = budget
        self._prefix = prefix
        self._prompt_state = prompt_state(runner.prompts)
        self._packed = packed  # made when it is first needed, if the documents came without it

    @property
    def nbytes(self) -> int:
        """Return the bytes of memory that its keys and values take."""
        return self._prefix.cache.nbytes

    def check_current(self) -> None:
        """Refuse to continue from what a model or tokenizer read that has been changed since.

        Raises:
            CacheMismatchError: the message says what has changed.
        """
        check_prompts(self._runner.prompts, self._prompt_state)
        self._prefix.check_model(self._runner.engine.model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the reading to a file, for ``LongContextLLM.load``, in this process or another.

        The file is safetensors, no pickle, and holds the documents too. It appears whole or not at
        all: a crash leaves what was there before.

        Args:
            path: the file; one that is there is replaced.

        Raises:
            ReadingFileError: it can't be written.
            CacheMismatchError: the model keeps its keys in a way that can't be saved, or it or the
                tokenizer has changed since.
            TypeError: metadata of a document are no JSON values.
        """
        runner = self._runner
        check_prompts(self._runner.prompts, self._prompt_state)
        persist.save(
            Path(path),
            runner.engine.snapshot(self._prefix),
            self._prefix.tokens,
            self._prefix.settings,
            fingerprint=reading_fingerprint(
                runner.engine, runner.prompts, self.plan.pretraining_window
            ),
            capacity=self.plan.total_tokens,
            attachment=attachment_of(self.documents, self.plan, self.seconds),
        )

    def ask(
        self,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        json_schema: Mapping[str, Any] | None = None,
        evidence: bool = True,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        **options: Any,
    ) -> Answer:
        """Return the answer to a question about the documents.

        Args:
            question: the question alone; the prompt around it is made here.
            history: earlier questions on these documents, each with its answer, the oldest first.
            json_schema: the answer is JSON that is valid for this schema.
            evidence: find the passages that the answer rests on, see `Evidence`; takes a few
                hundredths of the answering time.
            progress: called after each chunk of the question, from the model's worker thread, which
                can't be asked anything meanwhile.
            cancelled: ends the answer where it is, between two chunks or tokens.
            options: fields of `GenerationSettings`. By default ``max_new_tokens`` are those of the
                plan, and in the plain form, of models without a chat template, ``stop`` is a line
                end.

        Raises:
            ContextBudgetExceeded: question and answer need more space than the plan left.
            MemoryBudgetExceeded: memory has no space for them; nothing has run.
            SchemaError: the schema holds what can't be enforced; the model has not run.
            ConstraintError: the answer could not be kept to its schema.
        """
        with self.stream(
            question,
            history=history,
            json_schema=json_schema,
            evidence=evidence,
            progress=progress,
            cancelled=cancelled,
            **options,
        ) as stream:
            return stream.answer

    def stream(
        self,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        json_schema: Mapping[str, Any] | None = None,
        evidence: bool = True,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        **options: Any,
    ) -> TextStream:
        """Return the answer as text that comes as it is generated; see ``ask``."""
        prompt = self._prepared(question, history, json_schema, options)
        return self._runner.stream(prompt, self._start(evidence), Run(progress=progress), cancelled)

    def ask_batch(
        self,
        questions: Sequence[BatchQuestion],
        *,
        history: Sequence[tuple[str, str]] = (),
        json_schema: Mapping[str, Any] | None = None,
        evidence: bool = False,
        at_once: int = 16,
        progress: Progress | None = None,
        cancelled: Cancelled = None,
        **options: Any,
    ) -> list[Answer]:
        """Return the answers to several questions, in their order; each is that of ``ask``.

        The documents' keys are held once, and on a CPU looked at once for all. Each question is
        read alone, then one token of each answer is made in every step of the model; an answer that
        ends is followed by the next question. Models that can't do this (recurrent layers, chunked
        attention, attention outside the function of the configuration) answer one after another.

        Args:
            questions: texts; or, for what differs by question, dicts of the arguments of ``ask``:
                ``{"question": "...", "stop": "."}``. They win over those given here for all.
            history: earlier questions with their answers, which come before each of these.
            json_schema: the answers are JSON that is valid for this schema.
            evidence: find the passages that each answer rests on.
            at_once: the most questions that are answered at a time. Each holds keys for its
                question and its answer meanwhile, and a window of each sliding layer; where memory
                has no space for so many, fewer are.
            progress: called after each chunk of a question, with the tokens read of all questions
                and how many there are.
            cancelled: ends all answers where they are; those not begun are empty.
            options: as for ``ask``. A ``seed`` gives each question the answer that it gives alone.

        Raises:
            ContextBudgetExceeded: a question and its answer need more space than the plan left;
                nothing has run. Errors of one question say in a note which it is.
            SchemaError: a schema holds what can't be enforced; nothing has run.
            ConstraintError: an answer could not be kept to its schema; no answers come back.
            TypeError: a question is none; nothing has run.
            ValueError: an option is out of range; nothing has run.
        """
        if at_once < 1:
            raise ValueError(f"at_once must be a positive integer, got {at_once}")
        shared = {"history": history, "json_schema": json_schema, **options}
        prompts = []
        for number, arguments in enumerate(_arguments_of(questions, shared), 1):
            question, said, schema = (
                arguments.pop(name) for name in ("question", "history", "json_schema")
            )
            try:
                prompts.append(self._prepared(question, said, schema, arguments))
            except (SelfExtendError, TypeError, ValueError) as error:
                error.add_note(f"It was question {number} of the batch.")
                raise
        if not prompts:
            return []

        def work(is_cancelled: Callable[[], bool]) -> list[Answer]:
            start = self._start(evidence, self._rows(prompts, at_once, is_cancelled), prompts)
            return self._runner.answers(
                prompts, start, Run(progress=progress, cancelled=is_cancelled)
            )

        return Job(self._runner.worker, work, cancelled).result()

    def _rows(
        self, prompts: Sequence[PreparedPrompt], at_once: int, cancelled: Callable[[], bool]
    ) -> int:
        """Return how many of the questions to answer at a time."""
        most, budget = min(at_once, len(prompts)), self._budget.memory()
        if most > 1 and budget is not None:
            held = bytes_by_device(self._prefix.cache)
            most = budget.most_rows(self.plan, self._own_tokens(prompts), most, held)
        try:
            if most > 1 and rows.unsupported_reason(self._runner.engine, self._prefix, cancelled):
                return 1
        except GenerationCancelled:
            return 1  # the answers say it
        return most

    def _own_tokens(self, prompts: Sequence[PreparedPrompt]) -> int:
        """Return the tokens of the longest question and its answer."""
        longest = max(len(x.tokens) + x.options.max_new_tokens for x in prompts)
        return longest - len(self._prefix)

    def _prepared(
        self,
        question: str,
        history: Sequence[tuple[str, str]],
        json_schema: Mapping[str, Any] | None,
        given: Mapping[str, Any],
    ) -> PreparedPrompt:
        """Return a question ready to be answered; nothing runs."""
        check_prompts(self._runner.prompts, self._prompt_state)
        options = self._runner.options(
            {"max_new_tokens": self.plan.max_new_tokens, **given}, framed=True
        )
        form = output_format(self._runner.prompts, options, json_schema, None)
        said = [
            {"role": role, "content": text}
            for pair in history
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        tokens = (*self._prefix.tokens, *self._runner.prompts.question(question, said).tokens)
        plan = self._budget.planner.plan_within(self.plan, len(tokens), options.max_new_tokens)
        return PreparedPrompt(tokens, options, plan, form=form)

    def _start(
        self, evidence: bool, at_once: int = 1, prompts: Sequence[PreparedPrompt] = ()
    ) -> Start:
        sources = self._sources() if evidence else None
        if at_once == 1:
            return Start(prefix=self._prefix, sources=sources)
        budget, own = self._budget.memory(), self._own_tokens(prompts)
        more = {} if budget is None else budget.rows_bytes(self.plan, own, at_once)
        longest = max(len(x.tokens) for x in prompts) - len(self._prefix)
        return Start(
            prefix=self._prefix,
            sources=sources,
            at_once=at_once,
            reserving=self._runner.ledger.reserving(self.plan, longest, reading=True, more=more),
        )

    def _sources(self) -> Sources | None:
        """Return what tokens hold of the documents; None if the tokenizer does not say."""
        if self._packed is None:
            self._packed = self._runner.prompts.documents(self.documents)
        ranges, read = self._packed.ranges, self._prefix.tokens
        if ranges is not None and self._packed.tokens != read:  # read on another day, perhaps
            ranges = ranges.within_other(self._packed.tokens, read)
        return None if ranges is None else Sources(self.documents, ranges)


def _arguments_of(
    questions: Sequence[BatchQuestion], shared: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return for each question the arguments to ask it with; its own win over the shared ones.

    Raises:
        TypeError: ``questions`` are one text, or one of them is neither a text nor arguments.
    """
    if isinstance(questions, str | Mapping):
        raise TypeError(
            f"questions must be a list of questions, got one {type(questions).__name__}; "
            "use ask for a single question"
        )
    return [_arguments(i, question, shared) for i, question in enumerate(questions, 1)]


def _arguments(number: int, question: BatchQuestion, shared: Mapping[str, Any]) -> dict[str, Any]:
    own = {"question": question} if isinstance(question, str) else question
    if not isinstance(own, Mapping) or not isinstance(own.get("question"), str):
        raise TypeError(
            f"question {number} must be a text, or a dict with the text under 'question', got "
            f"{question!r}"
        )
    for name in _OF_THE_BATCH:
        if name in own:
            raise TypeError(
                f"question {number} has {name!r} of its own; pass it once, to the whole batch"
            )
    return {**shared, **own}
