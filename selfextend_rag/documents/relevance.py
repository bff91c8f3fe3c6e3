"""How much documents have to do with a question, by their words."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Scripts without spaces between words count by character.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)


def word_relevance(question: str, texts: Sequence[str]) -> list[float]:
    """Return the BM25 score of each text; 0 for all when they share no word with the question.

    Raises:
        ImportError: bm25s is not installed; the extras of the frameworks bring it.
    """
    try:
        import bm25s
    except ImportError as error:
        raise ImportError(
            "ranking documents by their words needs bm25s, which is not installed; install it "
            "with: pip install bm25s (the extras langchain and llama-index bring it), or rank by "
            "embeddings"
        ) from error
    corpus = [_WORD.findall(text.lower()) for text in texts]
    known = {word for words in corpus for word in words}
    asked = [word for word in _WORD.findall(question.lower()) if word in known]
    if not asked:
        return [0.0] * len(texts)
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return [float(score) for score in index.get_scores(asked)]
