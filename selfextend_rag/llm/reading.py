"""Documents that were read once, to be asked many times."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfextend_rag.cache import SelfExtendCache, persist
from selfextend_rag.cache.cache import bytes_by_device
from selfextend_rag.documents import Document
from selfextend_rag.engine import CachedPrefix, rows
from selfextend_rag.engine.engine import Cancelled, Progress
from selfextend_rag.errors import SelfExtendError
from selfextend_rag.llm.batch import (
    Asked,
    BatchQuestion,
    QuestionsProgress,
    answers_of,
    arguments_of,
)
from selfextend_rag.llm.budget import ReadingBudget
from selfextend_rag.llm.fingerprint import check_prompts, prompt_state, reading_fingerprint
from selfextend_rag.llm.runner import Sources, TextRunner
from selfextend_rag.llm.saved import attachment_of
from selfextend_rag.llm.stream import Answer, TextStream
from selfextend_rag.output.reader import output_format
from selfextend_rag.planning import ContextPlan
from selfextend_rag.planning.rows import most_rows, needed_for_rows
from selfextend_rag.text.packing import Prompt


class Reading:
    """Documents as a model has read them; made by ``LongContextLLM.read``.

    It may be asked from several threads; each question starts from the documents alone.

    Attributes:
        documents: what was read.
        plan: the settings it was read under, and the room left for questions.
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
        """Refuse to go on from what a model or tokenizer read that has been changed since.

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
            self._prefix.extension,
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
            progress: called after each chunk of the question, from another thread.
            cancelled: ends the answer where it is.
            options: fields of `GenerationSettings`. By default ``max_new_tokens`` are those of the
                plan, and in the plain form, of models without a chat template, ``stop`` is a line
                end.

        Raises:
            ContextBudgetExceeded: question and answer need more room than the plan left.
            MemoryBudgetExceeded: memory has no room for them; nothing has run.
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
        """Return the answer as pieces of text that come as it is generated; see ``ask``."""
        asked = self._asked(question, history, json_schema, options)
        return self._stream(asked, evidence, progress, cancelled)

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
        ends makes room for the next question. Models that can't do this (recurrent layers, chunked
        attention, attention outside the function of the configuration) answer one after another,
        and so do those with ``kv_bits``, and all with ``evidence``.

        Args:
            questions: texts; or, for what differs by question, dicts of the arguments of ``ask``:
                ``{"question": "...", "stop": "."}``. They win over those given here for all.
            history: earlier questions with their answers, which come before each of these.
            json_schema: the answers are JSON that is valid for this schema.
            evidence: find the passages that each answer rests on. They are then answered one by
                one, in the time that takes.
            at_once: the most questions that are answered at a time. Each holds keys for its
                question and its answer meanwhile, and a window of each sliding layer; where memory
                has no room for so many, fewer are.
            progress: called after each chunk of a question, with the tokens read of all questions
                and how many there are.
            cancelled: ends all answers where they are; those not begun are empty.
            options: as for ``ask``. A ``seed`` gives each question the answer that it gives alone.

        Raises:
            ContextBudgetExceeded: a question and its answer need more room than the plan left;
                nothing has run. Errors of one question say in a note which it is.
            SchemaError: a schema holds what can't be enforced; nothing has run.
            ConstraintError: an answer could not be kept to its schema; no answers come back.
            TypeError: a question is none; nothing has run.
            ValueError: an option is out of range; nothing has run.
        """
        if at_once < 1:
            raise ValueError(f"at_once must be a positive integer, got {at_once}")
        shared = {"history": history, "json_schema": json_schema, **options}
        asked = []
        for number, arguments in enumerate(arguments_of(questions, shared), 1):
            given = [arguments.pop(name) for name in ("question", "history", "json_schema")]
            try:
                asked.append(self._asked(*given, arguments))
            except (SelfExtendError, TypeError, ValueError) as error:
                error.add_note(f"It was question {number} of the batch.")
                raise
        at_once = 1 if evidence else self._rows(asked, at_once)
        if at_once == 1 or rows.objection(self._runner.engine, self._prefix, cancelled):
            return self._one_by_one(asked, evidence, progress, cancelled)
        return answers_of(
            self._runner,
            asked,
            self._prefix,
            at_once=at_once,
            progress=progress,
            cancelled=cancelled,
            claim=lambda cache: self._claim_rows(cache, asked, at_once),
        )

    def _claim_rows(self, cache: SelfExtendCache, asked: Sequence[Asked], at_once: int) -> None:
        """See to it that there is memory for so many questions at a time."""
        budget, own = self._budget.memory(), self._own_tokens(asked)
        more = {} if budget is None else needed_for_rows(budget, self.plan, own, at_once)
        longest = max(len(x.tokens) for x in asked) - len(self._prefix)
        self._runner.claims.claim(self.plan, longest, cache, reading=True, more=more)

    def _own_tokens(self, asked: Sequence[Asked]) -> int:
        """Return the tokens of the longest question and its answer."""
        return max(len(x.tokens) + x.settings.max_new_tokens for x in asked) - len(self._prefix)

    def _rows(self, asked: Sequence[Asked], at_once: int) -> int:
        """Return how many of the questions to answer at a time."""
        if len(asked) < 2:
            return 1
        most = min(at_once, len(asked))
        held = bytes_by_device(self._prefix.cache)
        return most_rows(self._budget.memory(), self.plan, self._own_tokens(asked), most, held)

    def _one_by_one(
        self,
        asked: Sequence[Asked],
        evidence: bool,
        progress: Progress | None,
        cancelled: Cancelled,
    ) -> list[Answer]:
        told = progress and QuestionsProgress(asked, len(self._prefix), progress)
        answers = []
        for index, question in enumerate(asked):
            own = told.of(index) if told else None
            with self._stream(question, evidence, own, cancelled) as stream:
                answers.append(stream.answer)
        return answers

    def _asked(
        self,
        question: str,
        history: Sequence[tuple[str, str]],
        json_schema: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> Asked:
        """Return a question ready to be answered; nothing runs."""
        check_prompts(self._runner.prompts, self._prompt_state)
        settings = self._runner.settings(
            {"max_new_tokens": self.plan.max_new_tokens, **options}, framed=True
        )
        form = output_format(self._runner.prompts, settings, json_schema, None)
        said = [
            {"role": role, "content": text}
            for pair in history
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        tokens = (*self._prefix.tokens, *self._runner.prompts.question(question, said))
        plan = self._budget.planner.plan_within(self.plan, len(tokens), settings.max_new_tokens)
        return Asked(tokens, settings, plan, form)

    def _stream(
        self, asked: Asked, evidence: bool, progress: Progress | None, cancelled: Cancelled
    ) -> TextStream:
        return self._runner.stream(
            asked.tokens,
            asked.settings,
            asked.plan,
            framed=True,
            form=asked.form,
            prefix=self._prefix,
            progress=progress,
            cancelled=cancelled,
            sources=self._sources() if evidence else None,
        )

    def _sources(self) -> Sources | None:
        """Return what tokens hold of the documents; None if the tokenizer does not tell."""
        if self._packed is None:
            self._packed = self._runner.prompts.packed(self.documents)
        ranges, read = self._packed.ranges, self._prefix.tokens
        if ranges is not None and self._packed.tokens != read:  # read on another day, perhaps
            ranges = ranges.within_other(self._packed.tokens, read)
        return None if ranges is None else Sources(self.documents, ranges)
