"""Documents ranked by the words they share with a question."""

from __future__ import annotations

import sys

import pytest

from selfextend_rag import word_relevance

TEXTS = [
    "The dean approves travel. Travel costs are paid in May.",
    "Lunch is at noon.",
    "The dean eats lunch.",
]


def test_the_text_that_shares_rare_words_comes_first():
    scores = word_relevance("Who approves travel?", TEXTS)
    assert max(range(3), key=scores.__getitem__) == 0
    assert scores[1] == scores[2] == 0


def test_a_question_of_other_words_ranks_nothing():
    assert word_relevance("Quis custodiet?", TEXTS) == [0.0, 0.0, 0.0]


def test_case_and_punctuation_do_not_matter_and_scripts_without_spaces_count_by_character():
    assert word_relevance("LUNCH!", TEXTS)[1] > 0
    first, second = word_relevance("東京", ["京都は古い。", "東京は大きい。"])
    assert second > first


def test_without_bm25s_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r"pip install bm25s .*or rank by embeddings"):
        word_relevance("a", ["a", "b"])
