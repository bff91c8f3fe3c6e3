"""Facts for training: each question has one answer, and the statement holds it."""

import random

import pytest
from training_words import WORDS

from training.facts import FactMaker


@pytest.fixture
def maker():
    return FactMaker(WORDS, random.Random(5))


def test_the_statement_holds_the_value_and_the_question_does_not(maker):
    for _ in range(300):
        fact = maker.facts(1)[0]
        assert fact.value in fact.statement
        if fact.value.isdigit() and len(fact.value) > 2:
            assert fact.value not in fact.question
        assert fact.attribute in fact.question


def test_no_two_facts_of_a_document_ask_the_same(maker):
    for _ in range(100):
        facts = maker.facts(8)
        assert len({(fact.attribute, fact.owner) for fact in facts}) == 8
        bare = {fact.attribute for fact in facts if not fact.owner}
        assert all(fact.attribute not in bare for fact in facts if fact.owner)


def test_many_facts_share_an_attribute_or_an_owner(maker):
    shared = 0
    for _ in range(100):
        facts = maker.facts(6)
        shared += len({fact.attribute for fact in facts}) < 6
    assert shared > 50


def test_digit_values_have_one_to_seven_digits(maker):
    lengths = {len(maker.digits()) for _ in range(500)}
    assert lengths == set(range(1, 8))


def test_the_same_seed_gives_the_same_facts():
    first, second = (FactMaker(WORDS, random.Random(9)).facts(5) for _ in range(2))
    assert first == second
