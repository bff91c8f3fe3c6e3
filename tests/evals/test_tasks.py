"""Evaluation prompts: exact length, the fact where it was asked, and one right answer."""

import pytest
from transformers import AutoTokenizer

from selfextend_rag.bundled import FOLDER
from selfextend_rag.evals import Prose, king_james, lookup_task, passkey_task

TASKS = {"passkey": passkey_task, "lookup": lookup_task}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def prose(tokenizer):
    return Prose.tokenize(king_james()[:60_000], tokenizer)


def test_prose_tokens_decode_to_the_text(tokenizer, prose):
    assert tokenizer.decode(list(prose.ids)) == king_james()[:60_000].strip()


def test_every_border_starts_a_sentence(tokenizer, prose):
    for border, start in zip(prose.borders[1:50], prose.starts[1:50], strict=True):
        before = tokenizer.decode(list(prose.ids[:border]))
        assert before[-1] in ".!?:;'\"),"
        assert tokenizer.decode(list(prose.ids[start : start + 4])).lstrip()[0].isupper()


def test_a_run_has_the_asked_length_and_starts_with_a_sentence(tokenizer, prose):
    for choice in (0.0, 0.37, 0.999):
        ids, borders = prose.run(777, choice)
        assert len(ids) == 777
        assert borders[0] == 0
        assert borders == sorted(set(borders))
        assert not tokenizer.decode(ids).startswith("\n")


def test_prose_that_is_too_short_is_refused(prose):
    with pytest.raises(ValueError, match="too short"):
        prose.run(len(prose.ids) + 1, 0.0)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [300, 511, 2048])
def test_a_prompt_has_exactly_the_asked_length(tokenizer, prose, name, length):
    for seed in range(20):
        task = TASKS[name](tokenizer, prose, length=length, depth=0.3, seed=seed)
        assert len(task.prompt_ids) == length


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_the_fact_stands_at_the_asked_depth(tokenizer, prose, name, depth):
    """Within a long sentence (King James has some of 120 tokens) of the exact place."""
    for seed in range(10):
        task = TASKS[name](tokenizer, prose, length=2048, depth=depth, seed=seed)
        assert abs(task.statement_start - depth * 2000) < 160
        ahead = task.prompt_ids[task.statement_start :]
        assert tokenizer.decode(list(ahead)).lstrip().startswith(task.statement)


@pytest.mark.parametrize("name", TASKS)
def test_the_question_stands_once_and_at_the_end(tokenizer, prose, name):
    for seed in range(20):
        task = TASKS[name](tokenizer, prose, length=700, depth=0.6, seed=seed)
        text = tokenizer.decode(list(task.prompt_ids), skip_special_tokens=True)
        assert text.endswith(f"\n\nQuestion: {task.question}\nAnswer:")
        assert text.count("Question:") == 1
        assert task.answer in task.statement


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_prompt_and_another_seed_another(tokenizer, prose, name):
    first, again, other = (
        TASKS[name](tokenizer, prose, length=600, depth=0.5, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first.prompt_ids != other.prompt_ids


def test_no_distractor_has_the_answers_value_or_key(tokenizer, prose):
    for seed in range(60):
        task = lookup_task(tokenizer, prose, length=900, depth=0.5, seed=seed, distractors=6)
        text = tokenizer.decode(list(task.prompt_ids), skip_special_tokens=True)
        document = text.rsplit("\n\nQuestion:", 1)[0].replace(task.statement, "", 1)
        subject = task.question.removeprefix("What is the ").removesuffix("?")
        attribute, owner = subject.split(" of ", 1)
        assert f"{attribute} of {owner} " not in document
        assert f"{owner}'s {attribute} " not in document


def test_lookups_come_in_every_wording(tokenizer, prose):
    forms = {
        lookup_task(tokenizer, prose, length=500, depth=0.5, seed=seed).form for seed in range(80)
    }
    assert len(forms) == 7


def test_a_prompt_without_space_for_its_facts_is_refused(tokenizer, prose):
    with pytest.raises(ValueError, match="no space"):
        lookup_task(tokenizer, prose, length=40, depth=0.5, seed=0)


def test_the_prompt_is_what_the_tokenizer_makes_of_its_text(tokenizer, prose):
    """Parts are tokenized apart; together they must give the tokens that a user's text gives."""
    for seed in range(10):
        task = passkey_task(tokenizer, prose, length=600, depth=0.4, seed=seed)
        text = tokenizer.decode(list(task.prompt_ids), skip_special_tokens=True)
        again = tokenizer(text)["input_ids"]
        # The document is cut at a token, so that alone the word at its end may split otherwise.
        assert again[:500] == list(task.prompt_ids[:500])
        assert again[-12:] == list(task.prompt_ids[-12:])
