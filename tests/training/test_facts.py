"""Facts for training: each question has one answer, and the statement holds it."""

import random

import pytest
from training_words import WORDS

from training.facts import FactMaker
from training.wordings import NOT_STATED


@pytest.fixture
def maker():
    return FactMaker(WORDS, random.Random(5))


def test_the_statement_holds_the_value_and_the_question_does_not(maker):
    for _ in range(300):
        fact = maker.facts(1)[0]
        assert fact.value in fact.statement
        if fact.value.isdigit() and len(fact.value) > 2:
            assert fact.value not in fact.question
        assert fact.owner.lower() in fact.question.lower()


def test_a_plain_fact_is_asked_for_by_the_name_of_its_attribute(maker):
    for _ in range(100):
        fact = maker.facts(1, plain=True)[0]
        assert fact.attribute in fact.question or "Who" in fact.question or not fact.owner


def test_facts_of_a_grid_share_each_word_of_their_keys(maker):
    for _ in range(100):
        facts = maker.grid(4)
        assert len({(fact.attribute, fact.owner) for fact in facts}) == 4
        assert len({fact.attribute for fact in facts}) <= 3


def test_what_is_not_stated_is_asked_of_no_stated_key(maker):
    shared = 0
    for _ in range(200):
        facts = maker.facts(4)
        asked = maker.unstated(facts)
        assert not asked.stated
        assert asked.value == NOT_STATED
        assert (asked.attribute, asked.owner) not in {(f.attribute, f.owner) for f in facts}
        shared += any(asked.owner == fact.owner for fact in facts)
    assert shared > 60  # the hard ones: the owner is in the text, the attribute is not


def test_deeds_name_who_does_them(maker):
    for _ in range(100):
        for fact in maker.deeds(4):
            assert fact.value in fact.statement
            assert fact.question.endswith("?")
            assert fact.owner.lower() in fact.question.lower()


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


def test_texts_of_few_names_share_them_and_the_next_text_does_not(maker):
    def names(share):
        maker.draw_from_few(share)
        return {maker.name() for _ in range(60)}

    assert len(names(1)) < 30 < len(names(0))
    facts = []
    for _ in range(200):
        maker.draw_from_few(1)
        facts += maker.facts(5)
        assert maker.unstated(facts[-5:]).value == NOT_STATED
    assert len({fact.value for fact in facts}) < len(facts)


def test_no_one_word_tells_that_a_value_ends(maker):
    after = set()
    for _ in range(1500):
        fact = maker.facts(1)[0]
        if fact.owner and fact.statement.startswith(f"{fact.value} "):
            after.add(fact.statement.removeprefix(fact.value).split()[0])
    assert len(after) > 20
