"""What a benchmark is made of: items, each one document and the questions on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, Protocol

from selfextend_rag.documents import Picture
from selfextend_rag.errors import SelfExtendError

Scores = Mapping[str, float]
"""What one answer scored, by name; ``score`` is the one that the benchmark reports."""

CutRule = Literal["middle", "tail", "head", "skip"]
"""What a benchmark's own program does with a prompt that is too long.

``middle`` joins the first and last tokens of the whole prompt, ``tail`` drops words at the
document's end, ``head`` at its beginning, and ``skip`` leaves the item out.
"""


class BenchmarkError(SelfExtendError, ValueError):
    """Data or a task that can't be had; the message says what was looked for, and where."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a document.

    Args:
        id: its name within the item.
        text: all of the prompt that follows the document.
        gold: what scoring needs, as JSON values.
        max_new_tokens: the longest answer.
        begin: what the answer begins with, given to the model.
        answer: a right answer as the model would write it, whose likelihood can be measured.
        query: what retrieval looks for, without the words around it; all of ``text`` by default.
        evidence: texts of which a passage that answers the question has one; empty where the
            right answer says nothing of its place, as a letter, a class or a yes does.
        others: wrong answers, written as ``answer`` is, that a model may take for the right one;
            whether it finds that one the likeliest of all can be measured.
    """

    id: str
    text: str
    gold: Mapping[str, object]
    max_new_tokens: int
    begin: str = ""
    answer: str = ""
    query: str = ""
    evidence: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One document with its questions.

    Args:
        id: its name within the task.
        before: the prompt up to the document.
        document: what is read; with ``before``, all that is shared by the questions.
        questions: what is asked; none where the text itself is to be predicted.
        chat: whether a model with a chat template is asked in its form.
        predict_tokens: of a text that is to be predicted, how many from its start.
        groups: what results are broken down by, such as the depth of a fact.
        pictures: what is to be looked at, each before a character of the document.
        record: of what the item is one variant, if of anything: all of them count as one document
            where it is said how sure a figure is.
    """

    id: str
    before: str
    document: str
    questions: tuple[Question, ...] = ()
    chat: bool = True
    predict_tokens: int = 0
    groups: Mapping[str, str | int | float] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    record: str = ""

    def to_values(self) -> dict[str, object]:
        """Return all that the item is as JSON values, pictures by their digests."""
        values = asdict(replace(self, pictures=()))
        del values["pictures"]
        if self.pictures:  # most have none, nor had any of earlier releases
            values["pictures"] = [(x.start, x.digest) for x in self.pictures]
        if not self.record:
            del values["record"]
        return values


class Tokens(Protocol):
    """What cutting and generating need of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with the start token that prompts have."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""


def mean_score(rows: Sequence[Scores]) -> float:
    """Return the mean of what the rows scored."""
    return math.fsum(row["score"] for row in rows) / len(rows)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of a benchmark: its items, how they are scored, and how scores are summed up.

    Args:
        name: such as ``longbench/qasper``.
        metric: name of the score.
        items: yields the items in the benchmark's order; reads data when it is called.
        score: of a question and the text of an answer.
        summary: of the scores of rows; not always their mean.
        further: more figures of the scores of rows, by name.
        cut: what the official program does with a prompt that is too long; None for nothing.
        prompt: whose wording the prompts have: the benchmark's files, or this package's.
        lower_is_better: whether a lower score is better.
        predicts: whether the text itself is predicted, and its items have no questions.
        needs: libraries that define the metric.
        available: whether the data of the task is there.
        note: what a reader of the score has to know.
    """

    name: str
    metric: str
    items: Callable[[Tokens], Iterator[Item]]
    score: Callable[[Question, str], Scores]
    summary: Callable[[Sequence[Scores]], float] = mean_score
    further: Callable[[Sequence[Scores]], Scores] = lambda rows: {}
    cut: CutRule | None = None
    prompt: str = "own"
    lower_is_better: bool = False
    predicts: bool = False
    needs: tuple[str, ...] = ()
    available: Callable[[], bool] = lambda: True
    note: str = ""
