"""A reading that is asked after earlier questions answers as after a conversation."""

from __future__ import annotations

import pytest

FREE = {"max_new_tokens": 12, "stop": (), "stop_token_ids": ()}
TEXT = "Ann is 31. Bob is 27. "
SAID = [("How old is Ann?", "31"), ("Who is Bob?", "A boy.")]


def messages(question):
    said = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        for asked, answered in SAID
    ]
    return [message for pair in said for message in pair] + [{"role": "user", "content": question}]


def fresh(llm, reading, prompt):
    """The answer to a whole prompt under the settings of a reading."""
    options = llm.runner.options(FREE, framed=True)
    tokens = llm.prompts.prompt(prompt).tokens
    settings = reading.plan.settings
    return llm.tokenizer.decode(list(llm.engine.generate(tokens, options, settings=settings)))


def test_in_the_plain_form_it_is_the_text_so_far(llm):
    reading = llm.read(TEXT, question_reserve=128)
    whole = (
        f"{TEXT.rstrip()}\n\nQuestion: How old is Ann?\nAnswer: 31\n\nQuestion: Who is Bob?\n"
        "Answer: A boy.\n\nQuestion: And he?\nAnswer:"
    )
    assert reading.ask("And he?", history=SAID, **FREE).text == fresh(llm, reading, whole)


def test_in_the_chat_form_it_is_the_conversation(chat_llm):
    reading = chat_llm.read(TEXT, question_reserve=256)
    first, *rest = messages("And he?")
    first = {**first, "content": f"{TEXT.rstrip()}\n\nBe brief.\n\nQuestion: {first['content']}"}
    expected = fresh(chat_llm, reading, [first, *rest])
    assert reading.ask("And he?", history=SAID, **FREE).text == expected


@pytest.mark.parametrize("at_once", [1, 16])
def test_every_way_of_asking_takes_it(llm, at_once):
    reading = llm.read(TEXT, question_reserve=128)
    one = reading.ask("And he?", history=SAID, **FREE)
    other = reading.ask("And he?", **FREE)
    assert one.text != other.text
    assert reading.stream("And he?", history=SAID, **FREE).answer.text == one.text
    several = ["And he?", {"question": "And he?", "history": ()}]
    answers = reading.ask_batch(several, history=SAID, at_once=at_once, **FREE)
    assert [answer.text for answer in answers] == [one.text, other.text]
