"""Documents in passages, as retrieval has them, and the choice of those that are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from selfextend_rag.documents import Document, refuse_pictures
from selfextend_rag.evals.benchmarks.items import Item, Question
from selfextend_rag.evals.comparison.asked import Asked
from selfextend_rag.evals.methods.base import MethodError
from selfextend_rag.evals.methods.rankings import (
    EmbeddingRanking,
    OracleRanking,
    RandomRanking,
    Ranking,
    WordRanking,
)

RetrieverName = Literal["bm25", "embeddings", "random", "oracle"]
RETRIEVERS: tuple[RetrieverName, ...] = ("bm25", "embeddings", "random", "oracle")
LEAST_WORDS = 20  # of a passage, however small the window
_BREAK = "\n\n"
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts without spaces count by character
_WORD = re.compile(rf"(?:[{_CJK}]|[^\s{_CJK}]+)\s*")
_ENDS = re.compile(r"[.!?\u3002\uff01\uff1f][\"')\]\u2019\u201d]*\s*$|\n")


@dataclass(frozen=True, slots=True)
class Retrieval:
    """How passages are made and found.

    Args:
        retriever: ``bm25`` by words, ``embeddings`` by their cosine, ``random`` by chance, or
            ``oracle``, which takes those that hold a right answer.
        passages: the most that are read for a question.
        passage_words: the most words of a passage; by default 200, or what lets so many passages
            fit the model's window.
        embeddings: of retriever ``embeddings``: an object of LangChain or LlamaIndex, or the folder
            or hub id of an encoder.

    Raises:
        MethodError: there is no such retriever, a number is out of range, embeddings are missing
            or of no use, or the library of BM25 is not installed.
    """

    retriever: RetrieverName = "bm25"
    passages: int = 3
    passage_words: int | None = None
    embeddings: object = None

    def __post_init__(self) -> None:
        if self.retriever not in RETRIEVERS:
            known = ", ".join(RETRIEVERS)
            raise MethodError(f"there is no retriever {self.retriever!r}; there are {known}")
        for name in ("passages", "passage_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MethodError(f"{name} must be positive, got {value}")
        if (self.embeddings is not None) != (self.retriever == "embeddings"):
            raise MethodError(
                "retriever embeddings needs embeddings to take, and no other retriever takes any; "
                f"got retriever {self.retriever} with embeddings {self.embeddings!r}"
            )
        if self.retriever == "bm25":
            _check_bm25()
        self.ranking()  # refuses embeddings of no use before anything is loaded

    def ranking(self) -> Ranking:
        """Return what ranks passages by a question."""
        if self.retriever == "embeddings":
            return EmbeddingRanking(self.embeddings)
        rankings: dict[str, type[Ranking]]
        rankings = {"bm25": WordRanking, "random": RandomRanking, "oracle": OracleRanking}
        return rankings[self.retriever]()


def _check_bm25() -> None:
    try:
        import bm25s  # noqa: F401  # what ranks later imports it again
    except ImportError as error:
        raise MethodError(
            'retriever bm25 needs the library bm25s; pip install "selfextend-rag[evals]", or take '
            "another retriever"
        ) from error


@dataclass(frozen=True, slots=True)
class Passage:
    """A range of a document's text."""

    document: int  # counted from 0
    start: int
    end: int


def passages_of(documents: Sequence[Document], words: int) -> list[Passage]:
    """Return documents in passages of at most so many words; joined, they are the text.

    A passage ends where the last paragraph in its second half ends, or else the last line or
    sentence, or else after its last word. Characters of scripts without spaces count as words.
    """
    refuse_pictures(documents, "passages of text don't have")
    found = []
    for number, document in enumerate(documents):
        starts = [0, *_borders(document.text, words), len(document.text)]
        found += [Passage(number, a, b) for a, b in pairwise(starts)]
    return found


def words_of(text: str) -> int:
    """Return how many words a text has, as passages count them."""
    return sum(1 for _ in _WORD.finditer(text))


def _borders(text: str, words: int) -> list[int]:
    spans = [match.span() for match in _WORD.finditer(text)]
    found: list[int] = []
    first = 0
    while first + words < len(spans):
        last = first + words  # the word after the passage, at most
        half = range(last, first + words // 2, -1)
        ends = [text[slice(*spans[place - 1])] for place in half]
        paragraph = (p for p, word in zip(half, ends, strict=True) if word.count("\n") > 1)
        sentence = (p for p, word in zip(half, ends, strict=True) if _ENDS.search(word))
        first = next(paragraph, next(sentence, last))
        found.append(spans[first][0])
    return found


class Index:
    """The passages of documents, to be ranked by questions.

    Args:
        documents: what passages are of.
        retrieval: how they are made and found.
        words: the most words of a passage.
    """

    def __init__(self, documents: Sequence[Document], retrieval: Retrieval, words: int) -> None:
        self.documents, self.retrieval, self.words = documents, retrieval, words
        self.passages = passages_of(documents, words)
        self._texts = [self.text(passage) for passage in self.passages]
        self._ranking = retrieval.ranking()

    def text(self, passage: Passage) -> str:
        """Return the text of a passage."""
        return self.documents[passage.document].text[passage.start : passage.end]

    def ranked(self, each: Asked) -> list[tuple[int, float]]:
        """Return the places of the best passages and their scores, the best first.

        Raises:
            MethodError: nothing can be ranked, such as by an oracle without a right answer.
        """
        item = Item("the documents", "", "")
        question = Question(each.question, each.question, {}, 1, evidence=each.answers)
        scores = self._ranking.scores(item, question, self._texts)
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        best = order[: self.retrieval.passages]
        return [(place, scores[place]) for place in best if scores[place] > -float("inf")]

    def read(self, places: Sequence[int]) -> list[Document]:
        """Return the documents of some passages, as a prompt of all of them would have them.

        Passages are in the order of the documents and under the headings that these have;
        neighbors are as they were, and a gap is an empty line.
        """
        texts: dict[int, str] = {}
        before: Passage | None = None
        for place in sorted(places):
            passage = self.passages[place]
            said = texts.get(passage.document, "")
            apart = bool(said) and before is not None and before.end != passage.start
            said = said.rstrip() + _BREAK if apart else said
            texts[passage.document] = said + self.text(passage)
            before = passage
        return [self._part(number, text, alone=len(texts) == 1) for number, text in texts.items()]

    def _part(self, number: int, text: str, *, alone: bool) -> Document:
        document = self.documents[number]
        title = " ".join(document.title.split()) or f"Document {number + 1}"
        if alone and len(self.documents) > 1:  # a single document would have no heading
            text = f"# {title}{_BREAK}{text}"
        return Document.from_text(text, title=title, source=document.source)
