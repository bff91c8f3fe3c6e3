"""The same model after retrieval: it sees the passages of a document that a ranking chose.

Frame, question and space for the answer are those of every other method. Passages, of 200 words as
LongBench's own retrieval has them or of so many as are asked for, fill what plain attention fits,
the best first, and are read in the document's order. Each answer's ``settings`` say which passages
were seen, of how many.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise

from selfextend_rag.evals.benchmarks.items import Item, Question
from selfextend_rag.evals.methods.base import (
    PASSAGE_WORDS,
    Answered,
    Input,
    LoadedModel,
    MethodError,
    MethodOptions,
    Predicted,
)
from selfextend_rag.evals.methods.rankings import (
    EmbeddingRanking,
    OracleRanking,
    RandomRanking,
    Ranking,
    WordRanking,
)
from selfextend_rag.evals.methods.windowed import Windowed, framed

# Scripts without spaces between words count by character, as they do in ranking.
_APART = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORDS = re.compile(rf"(?:[{_APART}]|[^\s{_APART}]+)\s*")
_BETWEEN = "\n\n"


def passages_of(text: str, words: int = PASSAGE_WORDS) -> list[str]:
    """Return a text in passages of so many words; joined, they are the text."""
    spans = [match.span() for match in _WORDS.finditer(text)]
    starts = [0, *(spans[i][0] for i in range(words, len(spans), words)), len(text)]
    return [text[a:b] for a, b in pairwise(starts) if a < b]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The passages that are read, by their places in the document."""

    places: list[int]
    of: int
    text: str


class Retrieved:
    """Answers from passages of a document that fit plain attention.

    Args:
        name: of the method.
        loaded: the model, the same that reads whole documents.
        options: of methods.
        ranking: chooses the passages.
    """

    name: str

    def __init__(
        self, name: str, loaded: LoadedModel, options: MethodOptions, ranking: Ranking
    ) -> None:
        for option in ("most_passages", "passage_words"):
            value = getattr(options, option)
            if value is not None and value < 1:
                raise MethodError(f"{option} must be positive, got {value}")
        self.name, self.inputs = name, ("whole",)
        self._ranking = ranking
        self._plain = Windowed(name, loaded, options, "never", ("whole",))
        self._window, self._most = loaded.window, options.most_passages
        self._words = options.passage_words

    inputs: tuple[Input, ...]

    def identity(self) -> Mapping[str, object]:
        """Return the ranking, and how passages are made and how many are taken."""
        passages = {"passage_words": self._words, "most_passages": self._most}
        return {**self._plain.identity(), **self._ranking.identity(), **passages}

    def answers(self, item: Item) -> list[Answered]:
        """Return the answers, each from passages of its own, which are found and read in its time.

        Raises:
            MethodError: not even one passage fits besides a question and its answer, or there are
                pictures, which are no passages.
        """
        if item.pictures:
            raise MethodError(
                f"{self.name} finds passages of text, and {item.id} has {len(item.pictures)} "
                "pictures"
            )
        passages = passages_of(item.document, self._words)
        found = []
        for question in item.questions:
            started = time.perf_counter()
            chosen = self._chosen(item, question, passages)
            finding = time.perf_counter() - started
            shorter = replace(item, document=chosen.text, questions=(question,))
            (answer,) = self._plain.answers(shorter)
            seen = {"passages": chosen.places, "of_passages": chosen.of}
            found.append(
                replace(
                    answer,
                    settings={**seen, "seen_tokens": answer.prompt_tokens},
                    seconds=finding + answer.read_seconds + answer.seconds,
                    read_seconds=0.0,  # nothing is shared
                )
            )
        return found

    def predicted(self, item: Item) -> Predicted:
        """Refuse: there is no question to find passages for.

        Raises:
            MethodError: always.
        """
        raise MethodError(f"{self.name} finds passages for a question; a text to predict has none")

    def _chosen(self, item: Item, question: Question, passages: Sequence[str]) -> _Chosen:
        """Return the best that fit, a worse one never in place of a better that does not."""
        takes_all = self._most is None and not isinstance(self._ranking, OracleRanking)
        if takes_all and self._fits(item, question, item.document):
            return _Chosen(list(range(len(passages))), len(passages), item.document)
        scores = self._ranking.scores(item, question, passages)
        ranked = sorted(range(len(passages)), key=lambda i: -scores[i])
        taken: list[int] = []
        for place in ranked[: self._most]:
            trial = sorted([*taken, place])
            if scores[place] == -float("inf") or not self._fits(
                item, question, _joined(passages, trial)
            ):
                break
            taken = trial
        if not taken:
            raise MethodError(
                f"a passage of {self._words} words, the question and {question.max_new_tokens} "
                f"tokens of answer exceed the window of {self._window}; try passage_words="
                f"{max(1, self._words // 2)}"
            )
        return _Chosen(taken, len(passages), _joined(passages, taken))

    def _fits(self, item: Item, question: Question, text: str) -> bool:
        shorter = replace(item, document=text, questions=(question,))
        llm = self._plain.llm_for(item)
        document, (asked,) = framed(llm.prompts, shorter)
        tokens = len(llm.prompts.documents([document])) + len(llm.prompts.question(asked))
        return tokens + question.max_new_tokens <= self._window


def _joined(passages: Sequence[str], places: Sequence[int]) -> str:
    """Return passages in the document's order; neighbors as they were, a gap as an empty line."""
    text = ""
    for before, place in zip([None, *places], places, strict=False):
        gap = "" if before is None or place == before + 1 else _BETWEEN
        text = (text.rstrip() + gap if gap else text) + passages[place]
    return text


def bm25(loaded: LoadedModel, options: MethodOptions) -> Retrieved:
    """Return retrieval by words.

    Raises:
        MethodError: bm25s, which ranks them, is not installed.
    """
    if find_spec("bm25s") is None:  # now, and not in the middle of a run
        raise MethodError('method bm25 needs bm25s; pip install "selfextend-rag[evals]"')
    return Retrieved("bm25", loaded, options, WordRanking())


def embeddings(loaded: LoadedModel, options: MethodOptions) -> Retrieved:
    """Return retrieval by embeddings."""
    return Retrieved("embeddings", loaded, options, EmbeddingRanking(options.embeddings))


def random_passages(loaded: LoadedModel, options: MethodOptions) -> Retrieved:
    """Return passages chosen by chance."""
    return Retrieved("random", loaded, options, RandomRanking())


def oracle(loaded: LoadedModel, options: MethodOptions) -> Retrieved:
    """Return the passages that hold the gold."""
    return Retrieved("oracle", loaded, options, OracleRanking())
