"""How much whole documents have to do with a question: by their words, or by embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.embeddings import Embeddings

from selfextend_rag import word_relevance


def by_relevance(
    query: str, texts: Sequence[str], embeddings: Embeddings | None = None
) -> list[int]:
    """Return the places of texts, the most relevant first; of equal ones the earlier first.

    Args:
        query: the question.
        texts: whole documents.
        embeddings: cosine similarity of these; by default BM25 of the words.
    """
    if embeddings is None:
        scores = word_relevance(query, texts)
    else:
        scores = _cosine(query, texts, embeddings)
    return sorted(range(len(texts)), key=lambda place: -scores[place])


def _cosine(query: str, texts: Sequence[str], embeddings: Embeddings) -> list[float]:
    asked = embeddings.embed_query(query)
    return [_similarity(asked, vector) for vector in embeddings.embed_documents(list(texts))]


def _similarity(one: Sequence[float], other: Sequence[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = sum(a * a for a in one) * sum(b * b for b in other)
    return product / lengths**0.5 if lengths else 0.0
