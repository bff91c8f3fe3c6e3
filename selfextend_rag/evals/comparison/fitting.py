"""How much of documents retrieval can show a model: what fits plain attention, the best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfextend_rag.documents import Document, refuse_pictures
from selfextend_rag.evals.comparison.passages import LEAST_WORDS, Index, words_of
from selfextend_rag.evals.methods.base import PASSAGE_WORDS, MethodError
from selfextend_rag.llm import LongContextLLM

_SPARE = 0.9  # share of the window's space to make passages for: some have longer words than others


def default_words(
    llm: LongContextLLM,
    documents: Sequence[Document],
    questions: Sequence[str],
    *,
    passages: int,
    answer_tokens: int,
) -> int:
    """Return 200, or the words of a passage so many of which fit the window.

    Args:
        llm: the model.
        documents: what passages are made of, at least one.
        questions: to be asked of the passages, at least one.
        passages: how many are read for a question.
        answer_tokens: tokens kept free for an answer.
    """
    refuse_pictures(documents, "passages of text don't have")
    prompts, window = llm.prompts, llm.planner.pretraining_window
    frame = len(prompts.documents([replace(documents[0], text=".", locations=())]))
    longest = max(len(prompts.question(question)) for question in questions)
    texts = [document.text for document in documents]
    tokens = sum(len(prompts.codec.text(text)) for text in texts)
    a_word = tokens / max(1, sum(map(words_of, texts)))
    fitting = int(_SPARE * (window - frame - longest - answer_tokens) / passages / a_word)
    return max(LEAST_WORDS, min(PASSAGE_WORDS, fitting))


def fitting_places(
    llm: LongContextLLM, index: Index, question: str, ranked: Sequence[int], *, answer_tokens: int
) -> list[int]:
    """Return the best passages that fit the window, a worse one never in place of a better.

    Args:
        llm: the model.
        index: has the passages.
        question: what is asked of them.
        ranked: places of passages, the best first.
        answer_tokens: tokens kept free for the answer.

    Raises:
        MethodError: the best one does not fit by itself.
    """
    prompts, window = llm.prompts, llm.planner.pretraining_window
    rest, taken = len(prompts.question(question)) + answer_tokens, list[int]()
    for place in ranked:
        trial = [*taken, place]
        tokens = len(prompts.documents(index.read(trial), ranges=False))
        if tokens + rest > window:
            break
        taken = trial
    if not taken:
        fitting = int(_SPARE * index.words * (window - rest) / tokens)
        remedy = f"try passage_words={fitting}" if fitting > 0 else "keep less for the answer"
        raise MethodError(
            f"a passage of {tokens} tokens, with the question and {answer_tokens} for the answer "
            f"{tokens + rest}, exceeds the window of {window}; {remedy}"
        )
    return taken
