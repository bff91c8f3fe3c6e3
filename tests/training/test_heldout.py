"""Held-out questions: exact length, one right answer, and wordings that training never sees."""

import pytest
from transformers import AutoTokenizer

from selfextend_rag.bundled import FOLDER
from selfextend_rag.evals.prose import Prose
from training import facts, heldout, questions

TEXT = "The river ran low in summer. Nobody knew why. The mill was shut, and bread grew dear. "


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def prose(tokenizer):
    return Prose.tokenize("\n\n".join([TEXT * 3] * 60), tokenizer)


@pytest.mark.parametrize("kind", heldout.KINDS)
def test_a_prompt_has_the_length_and_its_text_holds_the_answer(tokenizer, prose, kind):
    for seed in range(20):
        asked = heldout.KINDS[kind](tokenizer, prose, 300, seed)
        assert len(asked.prompt) == 300
        document = tokenizer.decode(asked.prompt).split("\n\nQuestion:")[0]
        answer = tokenizer.decode(asked.answer, skip_special_tokens=True).strip(' "}')
        assert (answer in document) == (kind != "unstated")


def test_the_same_seed_asks_the_same(tokenizer, prose):
    for make in heldout.KINDS.values():
        assert make(tokenizer, prose, 250, 3) == make(tokenizer, prose, 250, 3)


def test_wordings_of_the_probe_are_not_trained_on():
    trained = {*facts.OWNED_FORMS, *(f for forms in questions.MEASURES.values() for f in forms)}
    assert not trained & set(heldout.FORMS)


def test_distractors_share_the_attribute_or_the_owner():
    import random

    for seed in range(30):
        first, *others = heldout.crossed(random.Random(seed), heldout.ANY, 4)
        assert all((fact[0] == first[0]) != (fact[1] == first[1]) for fact in others)
        assert len({fact[2] for fact in (first, *others)}) == 4


def test_the_trained_form_asks_for_the_same_values(tokenizer, prose):
    for seed in range(20):
        answers = []
        for kind in ("free", "trained form"):
            asked = heldout.KINDS[kind](tokenizer, prose, 300, seed)
            question = tokenizer.decode(asked.prompt).split("\n\nQuestion: ")[1]
            answers.append(asked.answer)
            assert question.startswith("What is the ") == (kind == "trained form")
        assert answers[0] == answers[1]


def test_a_refusal_is_what_a_text_without_the_answer_is_answered_with(tokenizer, prose):
    unstated = heldout.KINDS["unstated"](tokenizer, prose, 300, 1)
    assert unstated.refusal == unstated.answer
    stated = heldout.KINDS["alike"](tokenizer, prose, 300, 1)
    assert stated.refusal == unstated.answer
    assert stated.answer != stated.refusal
