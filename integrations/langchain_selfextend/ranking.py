"""How much whole documents have to do with a question: by their words, or by embeddings."""

from __future__ import annotations

import re
from collections.abc import Sequence

from langchain_core.embeddings import Embeddings

# Scripts without spaces between words count by character.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)


def by_relevance(
    query: str, texts: Sequence[str], embeddings: Embeddings | None = None
) -> list[int]:
    """Return the places of texts, the most relevant first; of equal ones the earlier first.

    Args:
        query: the question.
        texts: whole documents.
        embeddings: cosine similarity of these; by default BM25 of the words.
    """
    scores = _bm25(query, texts) if embeddings is None else _cosine(query, texts, embeddings)
    return sorted(range(len(texts)), key=lambda place: -scores[place])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _bm25(query: str, texts: Sequence[str]) -> list[float]:
    try:
        import bm25s
    except ImportError as error:
        raise ImportError(
            "ranking documents by their words needs bm25s, which is not installed; install it "
            "with: pip install 'selfextend-rag[langchain]', or give embeddings="
        ) from error
    corpus = [_words(text) for text in texts]
    known = {word for words in corpus for word in words}
    asked = [word for word in _words(query) if word in known]
    if not asked:
        return [0.0] * len(texts)
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return [float(score) for score in index.get_scores(asked)]


def _cosine(query: str, texts: Sequence[str], embeddings: Embeddings) -> list[float]:
    asked = embeddings.embed_query(query)
    return [_similarity(asked, vector) for vector in embeddings.embed_documents(list(texts))]


def _similarity(one: Sequence[float], other: Sequence[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = sum(a * a for a in one) * sum(b * b for b in other)
    return product / lengths**0.5 if lengths else 0.0
