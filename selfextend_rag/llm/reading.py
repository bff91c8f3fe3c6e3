"""Documents that were read once, to be asked many times."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn, Unpack, cast

from selfextend_rag.cache.cache import bytes_by_device
from selfextend_rag.documents import Document
from selfextend_rag.engine import Job, Run
from selfextend_rag.errors import CacheMismatchError, GenerationCancelled, SelfExtendError
from selfextend_rag.evidence import TokenRanges
from selfextend_rag.llm import saved
from selfextend_rag.llm.answers.answer import Answer
from selfextend_rag.llm.answers.runner import PreparedPrompt, Start, TextRunner
from selfextend_rag.llm.answers.stream import TextStream
from selfextend_rag.llm.base import BaseReading, BatchQuestion, QuestionOptions, questions_of
from selfextend_rag.llm.saved import ReadDocuments
from selfextend_rag.output.reader import output_format
from selfextend_rag.text.prompts import prompt_state


class Reading(BaseReading):
    """Documents as a model has read them; made by ``LongContextLLM.read``.

    It may be asked from several threads, which wait for each other; each question starts from the
    documents alone.

    Attributes:
        documents: what was read.
        plan: the settings it was read under, and the space left for questions.
        seconds: how long the reading took.
        created: when it was done, in seconds since 1970.
    """

    def __init__(self, runner: TextRunner, read: ReadDocuments) -> None:
        self.documents, self.plan, self.seconds = read.documents, read.plan, read.seconds
        self.created = read.created
        self._read = read
        self._runner = runner
        self._prefix = read.prefix
        self._prompt_state = prompt_state(runner.prompts)
        self._packed = read.packed  # made when it is first needed, if it came without

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a reading can't be pickled; write it to a file with Reading.save, and have it in "
            "another process by LongContextLLM.load"
        )

    @property
    def nbytes(self) -> int:
        """Return the bytes of memory that its keys and values take."""
        return self._prefix.cache.nbytes

    @property
    def saved_bytes(self) -> int:
        """Return the bytes of keys and values that a file of it has.

        Raises:
            CacheMismatchError: the model keeps its keys in a way that can't be saved.
        """
        tensors = self._runner.engine.snapshot(self._prefix).tensors
        return sum(tensor.nbytes for tensor in tensors.values())

    def check_current(self) -> None:
        """Refuse to continue from what a model or tokenizer read that has been changed since.

        Raises:
            CacheMismatchError: the message says what has changed.
        """
        self._check_prompts()
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
        self._check_prompts()
        saved.save(path, self._read, self._runner)

    def stream(self, question: str, **options: Unpack[QuestionOptions]) -> TextStream:
        """Return the answer as text that comes as it is generated; see ``ask``."""
        evidence, cancelled = options.pop("evidence", True), options.pop("cancelled", None)
        run = Run(progress=options.pop("progress", None))
        prompt = self._prepared(question, options)
        start = Start(prefix=self._prefix, sources=self._sources() if evidence else None)
        return self._runner.stream(prompt, start, run, cancelled)

    def ask_batch(
        self,
        questions: Sequence[BatchQuestion],
        *,
        at_once: int = 16,
        **options: Unpack[QuestionOptions],
    ) -> list[Answer]:
        """Return the answers to several questions, in their order; each is that of ``ask``.

        The documents' keys are held once, and on a CPU looked at once for all. Each question is
        read alone, then one token of each answer is made in every step of the model; an answer that
        ends is followed by the next question. Models that can't do this (recurrent layers, chunked
        attention, attention outside the function of the configuration) answer one after another.

        Args:
            questions: texts; or, for what differs by question, dicts of the arguments of ``ask``:
                ``{"question": "...", "stop": "."}``. They win over those given here for all.
            at_once: the most questions that are answered at a time. Each holds keys for its
                question and its answer meanwhile, and a window of each sliding layer; where memory
                has no space for so many, fewer are.
            options: as for ``ask``. ``evidence`` is False by default, ``progress`` is given the
                tokens read of all questions and how many there are, and ``cancelled`` ends all
                answers where they are; those not begun are empty. A ``seed`` gives each question
                the answer that it gives alone.

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
        evidence, cancelled = options.pop("evidence", False), options.pop("cancelled", None)
        progress, prompts = options.pop("progress", None), []
        for number, (question, own) in enumerate(questions_of(questions), 1):
            try:
                merged = cast(QuestionOptions, {**options, **own})
                prompts.append(self._prepared(question, merged))
            except (SelfExtendError, TypeError, ValueError) as error:
                error.add_note(f"It was question {number} of the batch.")
                raise
        if not prompts:
            return []

        def work(is_cancelled: Callable[[], bool]) -> list[Answer]:
            start = self._start_of_rows(prompts, evidence, at_once, is_cancelled)
            run = Run(progress=progress, cancelled=is_cancelled)
            return self._runner.answers(prompts, start, run)

        return Job(self._runner.worker, work, cancelled).result()

    def answer_nll(self, question: str, answer: str) -> list[float]:
        """Return how unlikely an answer is that was written elsewhere: for each token, in nats.

        That is the negative log-likelihood of each of its tokens after the documents, the question
        and the tokens before it. Their mean tells how well a model knows an answer that it does not
        word like that, such as a base model that follows no instructions.

        Args:
            question: as for ``ask``.
            answer: the text of the answer; that it ends there is no part of it.

        Raises:
            ContextBudgetExceeded: question and answer need more space than the plan left.
            MemoryBudgetExceeded: memory has no space for them; nothing has run.
            ValueError: question or answer is empty.
        """
        self._check_prompts()
        runner, prefix = self._runner, self._prefix
        wanted = runner.prompts.answer(answer).tokens
        asked = (*prefix.tokens, *runner.prompts.question(question).tokens)
        plan = runner.budget.planner.plan_within(self.plan, len(asked), len(wanted))
        tokens, new = (*asked, *wanted), len(asked) + len(wanted) - len(prefix)

        def work(is_cancelled: Callable[[], bool]) -> list[float]:
            with runner.ledger.reserving(plan, new, reading=True) as reserve:
                reserve(prefix.cache)
                return runner.engine.continuation_nll(prefix, tokens, len(wanted), is_cancelled)

        return Job(runner.worker, work).result()

    def _start_of_rows(
        self,
        prompts: Sequence[PreparedPrompt],
        evidence: bool,
        at_once: int,
        cancelled: Callable[[], bool],
    ) -> Start:
        """Return how to answer as many of the questions at a time as model and memory can."""
        runner, prefix = self._runner, self._prefix
        start = Start(prefix=prefix, sources=self._sources() if evidence else None)
        longest = max(prompt.longest for prompt in prompts) - len(prefix)
        most, budget = min(at_once, len(prompts)), runner.ledger.budget()
        if most > 1 and budget is not None:
            most = budget.most_rows(self.plan, longest, most, bytes_by_device(prefix.cache))
        try:
            if most == 1 or runner.engine.rows_unsupported_reason(prefix, cancelled):
                return start
        except GenerationCancelled:
            return start  # the answers say it
        more = {} if budget is None else budget.rows_bytes(self.plan, longest, most)
        asked = max(len(prompt.tokens) for prompt in prompts) - len(prefix)
        reserving = runner.ledger.reserving(self.plan, asked, reading=True, more=more)
        return replace(start, at_once=most, reserving=reserving)

    def _prepared(self, question: str, options: QuestionOptions) -> PreparedPrompt:
        """Return a question ready to be answered; nothing runs."""
        self._check_prompts()
        runner, schema = self._runner, options.pop("json_schema", None)
        history = options.pop("history", ())
        given = {"max_new_tokens": self.plan.max_new_tokens, **options}
        settings = runner.options(given, framed=True)
        form = output_format(runner.prompts, settings, schema, None)
        tokens = (*self._prefix.tokens, *runner.prompts.question(question, history).tokens)
        plan = runner.budget.planner.plan_within(self.plan, len(tokens), settings.max_new_tokens)
        return PreparedPrompt(tokens, settings, plan, form=form)

    def _sources(self) -> tuple[Sequence[Document], TokenRanges] | None:
        """Return what tokens hold of the documents; None if the tokenizer does not say."""
        if self._packed is None:
            self._packed = self._runner.prompts.documents(self.documents)
        ranges, read = self._packed.ranges, self._prefix.tokens
        if ranges is not None and self._packed.tokens != read:  # read on another day, perhaps
            ranges = ranges.within_other(self._packed.tokens, read)
        return None if ranges is None else (self.documents, ranges)

    def _check_prompts(self) -> None:
        """Refuse tokens that another state of the tokenizer or its template made."""
        if prompt_state(self._runner.prompts) != self._prompt_state:
            raise CacheMismatchError(
                "the tokenizer, its special tokens or its chat template have changed since these "
                "documents were read; read them again, or put it back"
            )
