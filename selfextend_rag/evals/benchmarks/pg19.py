"""PG-19: perplexity over the beginnings of books, of tokens and of words.

Source: arXiv 1911.05507, github.com/google-deepmind/pg19.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from selfextend_rag.evals.benchmarks.files import Source
from selfextend_rag.evals.benchmarks.items import (
    BenchmarkError,
    Item,
    Question,
    Scores,
    Task,
    Tokens,
)

HUB = "deepmind/pg19"
_MOST_NATS = 500  # of a word; e to the 710th is no float
_FILES = ("test/*.txt", "pg19/test/*.txt")


def tasks(source: Source, lengths: Sequence[int]) -> list[Task]:
    """Return a task for each length, in tokens of the model."""
    return [_task(source, length) for length in lengths]


def _task(source: Source, length: int) -> Task:
    return Task(
        name=f"pg19/{length}",
        metric="token perplexity",
        items=partial(_items, source, length),
        score=_no_answer,
        summary=token_perplexity,
        further=_by_words,
        lower_is_better=True,
        predicts=True,
        available=partial(source.has, *_FILES, hub=HUB),
        note="papers give the perplexity of tokens, which depends on the tokenizer; the data set's "
        "own is of words; books with fewer tokens are left out",
    )


def _items(source: Source, length: int, tokens: Tokens) -> Iterator[Item]:
    for name, text in _books(source):
        if len(tokens.encode(text[: 16 * length])) >= length:  # a shorter book has not that length
            yield Item(name, "", text[: 16 * length], predict_tokens=length)


def _books(source: Source) -> Iterator[tuple[str, str]]:
    if source.folder is None:
        for number, record in enumerate(source.records("pg19", hub=HUB)):
            yield str(number), record["text"]
        return
    paths = source.find(*_FILES)
    if not paths:
        raise BenchmarkError(f"pg19 needs files {' or '.join(_FILES)}, not in {source.folder}")
    for path in paths:
        yield path.stem, path.read_text("utf-8")


def _no_answer(question: Question, text: str) -> Scores:
    raise BenchmarkError("pg19 asks no questions")


def scores_of(nlls: Sequence[float], words: int) -> Scores:
    """Return what one text scored.

    Args:
        nlls: negative log-likelihood of each token, in nats.
        words: of the text, between white space.
    """
    total, tokens = math.fsum(nlls), len(nlls)
    score = math.exp(total / tokens)
    return {"score": score, "nll": total, "tokens": float(tokens), "words": float(words)}


def token_perplexity(rows: Sequence[Scores]) -> float:
    """Return the perplexity of all tokens together."""
    return math.exp(math.fsum(x["nll"] for x in rows) / math.fsum(x["tokens"] for x in rows))


def _by_words(rows: Sequence[Scores]) -> Scores:
    """Return the perplexity of words: the likelihood of all tokens, shared by the words.

    Nothing where that is no number of use: scripts without spaces have few words, of many tokens.
    """
    nats, words = (math.fsum(row[name] for row in rows) for name in ("nll", "words"))
    return {"word_perplexity": math.exp(nats / words)} if nats < _MOST_NATS * words else {}
