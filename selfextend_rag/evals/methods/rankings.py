"""Rankings of passages by a question: words, embeddings, chance, and the gold itself."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from selfextend_rag.cache.identity import digest
from selfextend_rag.documents.document import word_relevance
from selfextend_rag.evals.benchmarks.items import Item, Question
from selfextend_rag.evals.methods.base import MethodError


class Ranking(Protocol):
    """Says how much each passage has to do with a question."""

    def identity(self) -> Mapping[str, object]:
        """Return all that decides the scores, as JSON values."""

    def scores(self, item: Item, question: Question, passages: Sequence[str]) -> list[float]:
        """Return a score for each passage; those of -inf are never taken."""


class WordRanking:
    """BM25 over words, by the library bm25s."""

    def identity(self) -> Mapping[str, object]:
        """Return the name."""
        return {"ranking": "bm25"}

    def scores(self, item: Item, question: Question, passages: Sequence[str]) -> list[float]:
        """Return BM25 scores of the question's words."""
        return word_relevance(question.query or question.text, passages)


class RandomRanking:
    """Chance, the same for the same question: what retrieval has to be better than."""

    def identity(self) -> Mapping[str, object]:
        """Return the name."""
        return {"ranking": "random"}

    def scores(self, item: Item, question: Question, passages: Sequence[str]) -> list[float]:
        """Return random scores that item and question decide."""
        drawn = random.Random(digest(f"{item.id}\n{question.id}\n{question.text}"))
        return [drawn.random() for _ in passages]


class OracleRanking:
    """The passages that hold a right answer, and nothing else: what retrieval can't do better than.

    It holds one if a text of the question's ``evidence`` is in it, in any case and as whole words,
    or begins in it and ends in the next.
    """

    def identity(self) -> Mapping[str, object]:
        """Return the name."""
        return {"ranking": "oracle"}

    def scores(self, item: Item, question: Question, passages: Sequence[str]) -> list[float]:
        """Return 1 for passages that hold a right answer, earlier ones a little more.

        Raises:
            MethodError: no passage does, or the right answer says nothing of its place.
        """
        golds = [_whole_words(x) for x in dict.fromkeys(question.evidence) if x.strip()]
        if not golds:
            raise MethodError(f"the answer to {question.id} of {item.id} says nothing of its place")
        found = [-float("inf")] * len(passages)
        for i, passage in enumerate(passages):
            here, after = (
                passage.casefold(),
                passages[i + 1].casefold() if i + 1 < len(passages) else "",
            )
            for gold in golds:
                match = gold.search(here + after)
                if match and match.start() < len(here):
                    found[i] = 1 - i / (2 * len(passages))
                    if match.end() > len(here):
                        found[i + 1] = 1 - (i + 1) / (2 * len(passages))
        if max(found, default=-1.0) < 0:
            raise MethodError(f"no passage of {item.id} holds a right answer to {question.id}")
        return found


def _whole_words(text: str) -> re.Pattern[str]:
    """Return a pattern of a text in small letters that is no part of a longer word or number."""
    text = text.strip().casefold()
    begin, end = (r"(?<![a-z0-9])", r"(?![a-z0-9])")
    first, last = (x.isascii() and x.isalnum() for x in (text[0], text[-1]))
    return re.compile(f"{begin if first else ''}{re.escape(text)}{end if last else ''}")


class EmbeddingRanking:
    """Cosines of embeddings: of an object of LangChain or LlamaIndex, or of a model by name.

    Args:
        embeddings: has ``embed_documents`` and ``embed_query`` (LangChain), or
            ``get_text_embedding_batch`` and ``get_query_embedding`` (LlamaIndex); or is a folder or
            hub id of an encoder, whose last hidden states are averaged.

    Raises:
        MethodError: it is none of these, or none is given.
    """

    def __init__(self, embeddings: object) -> None:
        if not embeddings:
            raise MethodError("method embeddings needs MethodOptions(embeddings=...)")
        given = Encoder(embeddings) if isinstance(embeddings, str) else embeddings
        self._texts: Callable[[list[str]], Sequence[Sequence[float]]]
        self._query: Callable[[str], Sequence[float]]
        for texts, query in (
            ("embed_documents", "embed_query"),
            ("get_text_embedding_batch", "get_query_embedding"),
        ):
            if hasattr(given, texts) and hasattr(given, query):
                self._texts, self._query = getattr(given, texts), getattr(given, query)
                break
        else:
            kind = type(given).__name__
            raise MethodError(
                f"embeddings must be those of LangChain or LlamaIndex, or a name, got {kind}"
            )
        name = next((getattr(given, x, None) for x in ("model_name", "model")), None)
        self._name = f"{type(given).__name__} {name or ''}".strip()
        self._last: tuple[list[str], Sequence[Sequence[float]]] = ([], [])

    def identity(self) -> Mapping[str, object]:
        """Return class and name of the embeddings, and what they make of a sentence.

        The latter tells models of one name apart; to a few digits, as devices differ.
        """
        return {"ranking": "embeddings", "embeddings": self._name, "probe": self._probe}

    @cached_property
    def _probe(self) -> list[str]:
        return [f"{x:.2g}" for x in self._query("Which is it?")[:16]]

    def scores(self, item: Item, question: Question, passages: Sequence[str]) -> list[float]:
        """Return cosines with the question; the passages of the last one are not embedded again."""
        asked = self._query(question.query or question.text)
        if self._last[0] != list(passages):
            self._last = list(passages), self._texts(list(passages))
        return [_cosine(asked, x) for x in self._last[1]]


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    sizes = [sum(x * x for x in each) ** 0.5 for each in (one, other)]
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return float(product / (sizes[0] * sizes[1])) if all(sizes) else 0.0


class Encoder:
    """An encoder of transformers: the mean of the last hidden states of a text's tokens.

    Args:
        name: folder or hub id.
    """

    def __init__(self, name: str) -> None:
        self.model_name = name

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        loader: Any = AutoTokenizer
        return loader.from_pretrained(self.model_name), AutoModel.from_pretrained(self.model_name)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return an embedding of each text; a text longer than the encoder's window is refused."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the embedding of a text.

        Raises:
            MethodError: it is longer than the encoder reads.
        """
        import torch

        tokenizer, model = self._loaded
        found = tokenizer(text, return_tensors="pt")
        most = getattr(model.config, "max_position_embeddings", None)
        if most is not None and found["input_ids"].shape[1] > most:
            length = found["input_ids"].shape[1]
            raise MethodError(
                f"{self.model_name} reads {most} tokens, and a passage is {length}; take an "
                "encoder of a longer window, or passages of fewer words"
            )
        with torch.inference_mode():
            mean: list[float] = model.eval()(**found).last_hidden_state[0].mean(0).tolist()
        return mean
