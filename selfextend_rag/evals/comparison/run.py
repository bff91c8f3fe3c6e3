"""The comparison itself: the same model answers from whole documents, and from passages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from selfextend_rag.documents import Document
from selfextend_rag.errors import ContextBudgetExceeded, UnsupportedModelError
from selfextend_rag.evals.comparison.advice import recommended
from selfextend_rag.evals.comparison.asked import Asked, asked
from selfextend_rag.evals.comparison.fitting import default_words, fitting_places
from selfextend_rag.evals.comparison.passages import Index, Retrieval
from selfextend_rag.evals.comparison.places import found_of, source_of, support_of
from selfextend_rag.evals.comparison.results import (
    Compared,
    Comparison,
    Reply,
    RetrievalUsed,
)
from selfextend_rag.evals.methods.base import MethodError
from selfextend_rag.evals.metrics.words import answer_f1, holds_answer
from selfextend_rag.evidence import Evidence
from selfextend_rag.llm import Answer, LongContextLLM, Reading
from selfextend_rag.llm.budget import Documents, as_documents
from selfextend_rag.model import support
from selfextend_rag.planning import ContextPlan

ComparisonProgress = Callable[[str, int, int], None]
"""Is given what is being done, how much of it is done, and how much there is."""


def compare(
    llm: LongContextLLM,
    documents: Documents,
    questions: Sequence[str | Asked],
    *,
    retrieval: Retrieval | None = None,
    max_new_tokens: int | None = None,
    progress: ComparisonProgress = lambda what, done, total: None,
) -> Comparison:
    """Return how a model answers questions from whole documents, and from retrieved passages.

    Prompts have the same form and the same space for the answer, and answers are greedy. Documents
    are read once, as ``llm.read`` does, and each question is asked of that; then each is asked of
    the passages that a retriever finds for it, as many as plain attention fits. Where the documents
    do not fit whole, the comparison says why, and has the other side alone.

    Args:
        llm: the model.
        documents: one or several, each a `Document` or a text.
        questions: texts, or `Asked` with their right answers, without which nothing can be
            recommended.
        retrieval: how passages are made and found; three by BM25 by default.
        max_new_tokens: the longest answer; by default that of ``llm``.
        progress: called while it goes on, also from the model's worker thread.

    Raises:
        MethodError: the retriever can't be had.
        QuestionsError: there is no question, or one is blank.
        ValueError: there is no document, or different ones have the same id.
    """
    given, found = as_documents(documents), asked(questions)
    retrieval = Retrieval() if retrieval is None else retrieval
    if not given:
        raise ValueError("there are no documents; a comparison needs at least one")
    if len({x.id for x in given}) < len({(x.id, x.text) for x in given}):
        raise ValueError("different documents have the same id; give each one of its own")
    sides = _Sides(llm, given, found, retrieval, max_new_tokens, progress)
    whole = sides.read_whole()
    passages = sides.read_passages()
    compared = tuple(map(sides.compared, found, whole.answers, passages))
    return Comparison(
        model=llm.name,
        documents=tuple(map(source_of, given)),
        window=llm.planner.pretraining_window,
        max_new_tokens=sides.limit,
        plan=whole.plan,
        refusal=whole.refusal,
        read_tokens=0 if whole.plan is None else whole.plan.prompt_tokens,
        read_seconds=whole.seconds,
        retrieval=sides.used(),
        questions=compared,
        recommendation=recommended(compared, sides.used(), whole.seconds, whole.refusal),
    )


@dataclass(frozen=True, slots=True)
class _Whole:
    """The side of whole documents."""

    plan: ContextPlan | None
    seconds: float
    answers: list[tuple[Reply, tuple[Evidence, ...]] | None]
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class _Passages:
    """What retrieval made of one question."""

    reply: Reply | None
    ranked: list[tuple[int, float]]
    read: list[int]
    refusal: str = ""


class _Sides:
    """Both sides, with all that they share."""

    def __init__(
        self,
        llm: LongContextLLM,
        documents: Sequence[Document],
        questions: Sequence[Asked],
        retrieval: Retrieval,
        max_new_tokens: int | None,
        progress: ComparisonProgress,
    ) -> None:
        self._llm, self._documents, self._questions = llm, documents, questions
        self._progress = progress
        self.limit = llm.budget.max_new_tokens if max_new_tokens is None else max_new_tokens
        if self.limit < 1:
            raise ValueError(f"max_new_tokens must be positive, got {self.limit}")
        golds = [answer for each in questions for answer in each.answers[:1]]
        self._space = max(self.limit, *(len(llm.prompts.answer(x).tokens) for x in golds), 0)
        words = retrieval.passage_words or default_words(
            llm,
            documents,
            [each.question for each in questions],
            passages=retrieval.passages,
            answer_tokens=self._space,
        )
        self._index = Index(documents, retrieval, words)

    def used(self) -> RetrievalUsed:
        """Return how passages were made and found."""
        chosen = self._index.retrieval
        count = len(self._index.passages)
        return RetrievalUsed(chosen.retriever, chosen.passages, self._index.words, count)

    def read_whole(self) -> _Whole:
        """Return the answers from whole documents, or why there are none."""
        asked = [each.question for each in self._questions]
        nothing: list[tuple[Reply, tuple[Evidence, ...]] | None] = [None] * len(asked)
        try:
            plan = self._llm.plan(self._documents, question=asked, max_new_tokens=self._space)
            self._prepare(plan)
            reading = self._llm.read(
                self._documents,
                max_new_tokens=plan.max_new_tokens,
                question_reserve=plan.reserve_tokens,
                progress=lambda done, total: self._progress("reading", done, total),
            )
        except (ContextBudgetExceeded, UnsupportedModelError) as error:
            return _Whole(None, 0.0, nothing, str(error))
        answers = list(nothing)
        for number, each in enumerate(self._questions):
            reply, answer = self._reply(reading, each, evidence=True)
            answers[number] = reply, answer.evidence
            self._progress("answering from whole documents", number + 1, len(asked))
        return _Whole(reading.plan, reading.seconds, answers)

    def read_passages(self) -> list[_Passages]:
        """Return what retrieval makes of each question."""
        found = []
        for number, each in enumerate(self._questions):
            found.append(self._from_passages(each))
            self._progress("answering from passages", number + 1, len(self._questions))
        return found

    def compared(
        self,
        each: Asked,
        whole: tuple[Reply, tuple[Evidence, ...]] | None,
        passages: _Passages,
    ) -> Compared:
        """Return one question with both answers, and what each of them had to rest on."""
        reply, evidence = (None, ()) if whole is None else whole
        read = self._index.read(passages.read)
        known = bool(each.answers)
        return Compared(
            each,
            reply,
            passages.reply,
            support_of(self._index, evidence, passages.read),
            tuple(found_of(self._index, *x, passages.read) for x in passages.ranked),
            passages.refusal,
            any(holds_answer(x.text, each.answers) for x in self._documents) if known else None,
            any(holds_answer(x.text, each.answers) for x in read) if known else None,
        )

    def _prepare(self, plan: ContextPlan) -> None:
        """Have done what a model does once, so that it is in no side's seconds."""
        if plan.extended:
            support(self._llm.model)
        self._llm.read("A.", max_new_tokens=1).ask("B?", max_new_tokens=1)

    def _reply(self, reading: Reading, each: Asked, *, evidence: bool) -> tuple[Reply, Answer]:
        """Ask, and judge the answer; seconds of finding passages and reading them are not in it."""
        answer = reading.ask(each.question, max_new_tokens=self.limit, evidence=evidence)
        gold = each.answers[:1]
        nlls = reading.answer_nll(each.question, gold[0]) if gold else []
        used, known = answer.usage, bool(gold)
        reply = Reply(
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=used.prompt_tokens,
            run_tokens=used.prompt_tokens - used.cached_tokens,
            new_tokens=used.completion_tokens,
            search_seconds=0.0,
            read_seconds=0.0,
            answer_seconds=used.prefill_seconds + used.decode_seconds,
            right=holds_answer(answer.text, each.answers) if known else None,
            f1=answer_f1(answer.text, each.answers) if known else None,
            gold_nll=math.fsum(nlls) / len(nlls) if nlls else None,
        )
        return reply, answer

    def _from_passages(self, each: Asked) -> _Passages:
        ranked: list[tuple[int, float]] = []
        places: list[int] = []
        try:
            started = time.perf_counter()
            ranked = self._index.ranked(each)
            searched = time.perf_counter() - started
            places = fitting_places(
                self._llm,
                self._index,
                each.question,
                [place for place, _ in ranked],
                answer_tokens=self._space,
            )
            reading = self._llm.read(
                self._index.read(places),
                max_new_tokens=self._space,
                question_reserve=len(self._llm.prompts.question(each.question)),
            )
        except (ContextBudgetExceeded, MethodError) as error:
            return _Passages(None, ranked, [], str(error))
        reply, _ = self._reply(reading, each, evidence=False)
        reply = replace(
            reply,
            run_tokens=reply.prompt_tokens,
            search_seconds=searched,
            read_seconds=reading.seconds,
        )
        return _Passages(reply, ranked, places)
