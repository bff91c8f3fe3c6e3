"""What a comparison found: both answers to each question, and what each of them rests on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from selfextend_rag.evals.comparison.asked import Asked
from selfextend_rag.evals.comparison.passages import RetrieverName
from selfextend_rag.evidence import Evidence
from selfextend_rag.planning import ContextPlan

Choice = Literal["whole", "retrieval", "either", "undecided"]
RESTS_ON = 1 / 3
"""Share of the first passage's weight from which on an answer is said to rest on a further one.

Lighter passages come with most answers, also with those that a single sentence gives.
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, what it took, and how good it is.

    Args:
        text: the answer.
        finish_reason: why it ended.
        prompt_tokens: of the whole prompt.
        run_tokens: of these, the ones that the model read for this question alone; for whole
            documents, which are kept, those of the question.
        new_tokens: generated.
        search_seconds: of ranking the passages.
        read_seconds: of reading the passages.
        answer_seconds: of the question and its answer.
        right: whether it holds a right answer; None if none is known.
        f1: how much it has in common with the best right answer, from 0 to 1, if one is known.
        gold_nll: how unlikely the first right answer is in place of this one, in nats a token.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    run_tokens: int
    new_tokens: int
    search_seconds: float
    read_seconds: float
    answer_seconds: float
    right: bool | None = None
    f1: float | None = None
    gold_nll: float | None = None

    @property
    def seconds(self) -> float:
        """Return the seconds that this question took by itself."""
        return self.search_seconds + self.read_seconds + self.answer_seconds

    def to_dict(self) -> dict[str, object]:
        """Return the reply as JSON values."""
        return {**asdict(self), "seconds": self.seconds}


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that retrieval brought.

    Args:
        document: the document's source, title or id.
        document_id: its id.
        place: where in it, such as ``page 12`` or ``line 40``.
        start: the passage's first character in the document's text.
        end: the character after its last.
        score: what the retriever ranked it by.
        text: the passage.
        read: whether the model saw it: the best that fit its window.
    """

    document: str
    document_id: str
    place: str
    start: int
    end: int
    score: float
    text: str
    read: bool


@dataclass(frozen=True, slots=True)
class Support:
    """A passage that the answer from whole documents rests on, by the model's attention.

    Args:
        document: the document's source, title or id.
        place: where in it, such as ``page 12`` or ``line 40``.
        evidence: the passage.
        counts: whether it has so much weight that it counts: a third of the first one's.
        retrieved: whether retrieval brought all of it.
        within: the passages of retrieval that it is in, counted from 0 through all documents.
    """

    document: str
    place: str
    evidence: Evidence
    counts: bool
    retrieved: bool
    within: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """A question, and both answers to it.

    Args:
        asked: the question and its right answers.
        whole: the answer from whole documents; None where they do not fit.
        retrieved: the answer from passages; None where there is none.
        support: what the answer from whole documents rests on, the heaviest first.
        passages: what retrieval brought, the best first.
        refusal: why there is no answer from passages.
        answer_in_documents: whether a right answer is in the documents word for word; None if none
            is known.
        answer_in_passages: whether it is in what retrieval brought.
    """

    asked: Asked
    whole: Reply | None
    retrieved: Reply | None
    support: tuple[Support, ...] = ()
    passages: tuple[Found, ...] = ()
    refusal: str = ""
    answer_in_documents: bool | None = None
    answer_in_passages: bool | None = None

    @property
    def apart(self) -> bool:
        """Return whether no one passage holds what the whole answer rests on, nor do those read."""
        counted = [each for each in self.support if each.counts]
        shared = set.intersection(*(set(each.within) for each in counted)) if counted else set()
        return len(counted) > 1 and not shared and not all(each.retrieved for each in counted)

    @property
    def missed(self) -> bool:
        """Return whether what the whole answer rests on most was not retrieved."""
        return bool(self.support) and not self.support[0].retrieved

    def to_dict(self) -> dict[str, object]:
        """Return the question and what was found as JSON values."""
        names = ("document", "place", "counts", "retrieved", "within")
        support = [
            {**{name: getattr(x, name) for name in names}, **x.evidence.to_dict()}
            for x in self.support
        ]
        return {
            "question": self.asked.question,
            "answers": list(self.asked.answers),
            "whole": None if self.whole is None else self.whole.to_dict(),
            "retrieved": None if self.retrieved is None else self.retrieved.to_dict(),
            "refusal": self.refusal,
            "support": support,
            "passages": [asdict(found) for found in self.passages],
            "apart": self.apart,
            "missed": self.missed,
            "answer_in_documents": self.answer_in_documents,
            "answer_in_passages": self.answer_in_passages,
        }


@dataclass(frozen=True, slots=True)
class Reason:
    """A sentence that a recommendation rests on, and its figures.

    Args:
        name: what it is about, a short fixed name.
        text: the sentence.
        figures: the numbers in it, by name.
    """

    name: str
    text: str
    figures: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to use for questions such as these, and why.

    Args:
        choice: ``whole``, ``retrieval``, ``either``, or ``undecided`` where nothing can be
            recommended.
        text: the recommendation as a sentence.
        reasons: what it rests on.
    """

    choice: Choice
    text: str
    reasons: tuple[Reason, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the recommendation as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RetrievalUsed:
    """How passages were made and found.

    Args:
        retriever: its name.
        passages: the most for a question.
        passage_words: the most words of a passage.
        of_passages: how many passages the documents have.
    """

    retriever: RetrieverName
    passages: int
    passage_words: int
    of_passages: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whole documents and retrieval, by the same model and on the same questions.

    Args:
        model: its name.
        documents: the sources, titles or ids of the documents.
        window: P, tokens that the model was trained to see.
        max_new_tokens: the longest answer, of both.
        plan: how the documents were read whole; None where they do not fit.
        refusal: why they were not, with the figures.
        read_tokens: of the documents with all that is around them, read once.
        read_seconds: what that took.
        retrieval: how passages were made and found.
        questions: what was asked, and what came of it.
        recommendation: what to use, and why.
    """

    model: str
    documents: tuple[str, ...]
    window: int
    max_new_tokens: int
    plan: ContextPlan | None
    refusal: str
    read_tokens: int
    read_seconds: float
    retrieval: RetrievalUsed
    questions: tuple[Compared, ...]
    recommendation: Recommendation

    def explain(self) -> str:
        """Return the comparison as lines of text: each question, then the recommendation."""
        from selfextend_rag.evals.comparison.shown import lines

        return "\n".join(lines(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the comparison as one HTML page that loads nothing; it appears whole or not at all.

        Raises:
            OSError: it can't be written.
        """
        from selfextend_rag.evals.comparison.shown import parts
        from selfextend_rag.evals.pages import html_page, write_whole

        title = f"Whole documents and retrieval: {self.model}"
        write_whole(Path(path), html_page(title, parts(self)))

    def _repr_html_(self) -> str:
        """Return the comparison for a notebook."""
        from selfextend_rag import display
        from selfextend_rag.evals.comparison.shown import parts

        return display.page(*parts(self))

    def to_dict(self) -> dict[str, object]:
        """Return the comparison as JSON values."""
        plan = None if self.plan is None else self.plan.to_dict()
        whole = {"plan": plan, "refusal": self.refusal, "read_tokens": self.read_tokens}
        return {
            "model": self.model,
            "documents": list(self.documents),
            "pretraining_window": self.window,
            "max_new_tokens": self.max_new_tokens,
            "whole": {**whole, "read_seconds": self.read_seconds},
            "retrieval": asdict(self.retrieval),
            "questions": [each.to_dict() for each in self.questions],
            "recommendation": self.recommendation.to_dict(),
        }
