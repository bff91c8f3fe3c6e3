"""What a comparison recommends, and that it does not where nothing is known."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from selfextend_rag.evals.comparison.advice import LEAST, recommended
from selfextend_rag.evals.comparison.asked import Asked
from selfextend_rag.evals.comparison.figures import sign_test
from selfextend_rag.evals.comparison.results import (
    Compared,
    Found,
    Reply,
    RetrievalUsed,
    Support,
)
from selfextend_rag.evidence import Evidence

USED = RetrievalUsed("bm25", 3, 200, 50)


def reply(right, seconds=1.0, tokens=1000):
    nll = None if right is None else 0.5
    return Reply("x", "stop", tokens, tokens, 1, 0.0, 0.0, seconds, right, right, nll)


def support(*places, retrieved=True, score=0.5):
    evidence = Evidence("d", 0, 9, score, "A sentence.", "")
    return Support("d", "line 1", evidence, score > 0.2, retrieved, tuple(places))


def question(whole=True, retrieved=True, seconds=(1.0, 1.0), **more):
    passages = tuple(Found("d", "d", "line 1", 0, 9, 1.0, "A.", True) for _ in range(3))
    asked = Asked("Why?", () if whole is None else ("x",))
    sides = reply(whole, seconds[0]), reply(retrieved, seconds[1], 100)
    return Compared(asked, *sides, **{"passages": passages, **more})


def advice(*questions, read=0.0, refusal="", used=USED):
    found = [each for each, times in questions for _ in range(times)]
    return recommended(found, used, read, refusal)


def text(found, name):
    (reason,) = [reason for reason in found.reasons if reason.name == name]
    return reason.text


def test_the_sign_test_is_that_of_all_falls_of_fair_coins():
    for first, second in itertools.product(range(5), repeat=2):
        falls = list(itertools.product((0, 1), repeat=first + second))
        far = [x for x in falls if abs(2 * sum(x) - len(x)) >= abs(first - second)]
        assert sign_test(first, second) == pytest.approx(len(far) / len(falls))


def test_nothing_is_recommended_without_right_answers():
    found = advice((question(None, None), 40))
    assert found.choice == "undecided"
    assert "not known which answers are right" in found.text
    assert text(found, "same") == "Both gave the same answer to 40 of 40 questions."


@pytest.mark.parametrize("count", [1, LEAST - 1])
def test_nothing_is_recommended_of_few_questions(count):
    found = advice((question(True, False), count))
    assert found.choice == "undecided"
    assert "too few" in found.text
    assert advice((question(True, False), LEAST)).choice == "whole"


def test_what_is_right_more_often_beyond_chance_is_recommended():
    both = question()
    assert advice((both, 10), (question(True, False), 6)).choice == "whole"
    assert advice((both, 10), (question(False, True), 6)).choice == "retrieval"
    close = advice((both, 10), (question(True, False), 5))
    assert close.choice == "undecided"
    assert "not beyond chance" in close.text
    assert "5 of them, and retrieval alone in 0" in text(close, "alone")
    assert "6.2% of cases" in text(close, "alone")


def test_retrieval_that_is_as_right_and_cheaper_is_recommended():
    found = advice((question(seconds=(1.0, 0.5)), 10), read=9.0)
    assert (found.choice, found.text[:9]) == ("retrieval", "Retrieve:")
    assert "cheaper" in found.text
    better = advice((question(seconds=(1.0, 0.5)), 10), (question(False, True), 2))
    assert better.choice == "retrieval"
    assert "at least as often" in better.text


def test_a_kept_reading_that_is_as_right_and_cheaper_is_recommended():
    found = advice((question(seconds=(0.1, 2.0)), 10), read=9.0)
    assert found.choice == "whole"
    assert "as the reading is kept" in found.text
    assert "with 5 questions or more" in text(found, "seconds")
    dearer = advice((question(seconds=(0.1, 2.0)), 10), (question(False, True), 2), read=9.0)
    assert dearer.choice == "undecided"


def test_sides_that_are_as_right_and_as_fast_are_either():
    assert advice((question(seconds=(1.0, 1.05)), 12)).choice == "either"


def test_nothing_is_recommended_where_no_answer_is_right():
    found = advice((question(False, False), 20))
    assert found.choice == "undecided"
    assert "no answer was right either way" in found.text


def test_of_sides_that_are_mostly_wrong_one_is_recommended_only_beyond_chance():
    found = advice((question(False, False, seconds=(2.0, 1.0)), 20), (question(False, True), 2))
    assert found.choice == "undecided"
    assert "both were wrong more often than not" in found.text
    assert advice((question(False, False), 20), (question(False, True), 6)).choice == "retrieval"


@pytest.mark.parametrize("name", ["random", "oracle"])
def test_a_bound_is_never_recommended(name):
    found = advice((question(False, True), 20), used=replace(USED, retriever=name))
    assert found.choice == "undecided"
    assert f"{name} is a bound" in found.text


def test_nothing_is_recommended_where_there_is_nothing_to_compare():
    found = advice((replace(question(), whole=None), 20), refusal="9000 tokens exceed 400")
    assert found.choice == "undecided"
    assert found.reasons[0].text == "Whole documents are refused: 9000 tokens exceed 400"
    assert advice((replace(question(), retrieved=None, refusal="no"), 20)).choice == "undecided"
    short = advice((question(), 20), used=replace(USED, of_passages=3))
    assert short.choice == "undecided"
    assert "so short" in short.text


def test_answers_that_rest_on_places_not_brought_together_are_counted():
    apart = question(True, False, support=(support(1), support(7, retrieved=False, score=0.3)))
    assert apart.apart
    assert not apart.missed
    missed = question(True, False, support=(support(1, retrieved=False),))
    assert not missed.apart
    assert missed.missed
    found = advice((apart, 3), (missed, 1), (question(support=(support(1),)), 8))
    assert text(found, "apart") == (
        "3 of 12 right answers from whole documents rest on passages in several places that "
        "retrieval did not bring together, by the model's attention; in 3 of these retrieval was "
        "wrong."
    )
    assert text(found, "missed").startswith("1 of 12 right answers")
    wrong = advice((replace(apart, whole=reply(False)), 12))
    assert "apart" not in [reason.name for reason in wrong.reasons]


@pytest.mark.parametrize(
    "places",
    [
        (support(1), support(7)),  # both retrieved
        (support(1, 2), support(2, retrieved=False)),  # one passage holds both
        (support(1), support(7, retrieved=False, score=0.1)),  # the second has little weight
        (),
    ],
)
def test_answers_that_one_passage_holds_or_that_were_brought_together_are_not(places):
    assert not question(support=places).apart


def test_the_share_of_tokens_is_said():
    found = advice((question(), 10))
    assert "100 tokens a question after retrieval, 10% of the 1000" in text(found, "tokens")


def test_what_limits_a_comparison_is_said():
    cut = replace(question(), whole=replace(reply(True), finish_reason="length"))
    few = question(passages=(Found("d", "d", "line 1", 0, 9, 1.0, "A.", False),))
    found = advice((cut, 1), (few, 2), (question(False, False), 9))
    assert text(found, "cut_off").startswith("1 question had an answer that was cut off")
    assert text(found, "fewer_passages").startswith("For 2 questions fewer passages")
