"""What benchmarks' own programs do with prompts that are too long."""

import pytest

from selfextend_rag.evals.benchmarks import (
    Item,
    Question,
    Source,
    multidoc,
)
from selfextend_rag.evals.benchmarks.cutting import cut, official_length
from tests.evals.records import Bytes, Words, prompt


def asked(document, question="\nQ?"):
    return Item("1", "Before ", document, (Question("0", question, {}, 8),))


def test_the_middle_rule_keeps_the_ends_of_the_whole_prompt():
    item = asked("x" * 500)
    assert cut(item, "middle", 600, Bytes()) is item
    shorter = cut(item, "middle", 40, Bytes())
    assert prompt(shorter) == "Before xxxxxxxxxxxx" + "x" * 17 + "\nQ?"
    swallowed = cut(asked("x" * 500, "\n" + "q" * 90), "middle", 40, Bytes())
    assert prompt(swallowed) == "Before xxxxxxxxxxxx" + "q" * 20


@pytest.mark.parametrize("rule", ["middle", "tail", "head"])
def test_a_window_that_the_answer_alone_takes_leaves_the_item_out(rule):
    """It was cut to two tokens, of which none was the document's; that ended the run."""
    length = official_length(rule, 512, 512)
    assert length < 1
    assert cut(asked("x" * 500), rule, length, Bytes()) is None


def test_an_item_of_whose_document_nothing_is_left_is_left_out():
    assert cut(asked("x" * 500), "middle", 2, Bytes()) is None
    assert cut(asked(" ".join(["x" * 900] * 9)), "tail", 1, Bytes()) is None


def test_the_word_rules_drop_words_of_the_document():
    item = asked(" ".join(f"w{i}" for i in range(900)))
    tail, head = (cut(item, rule, 600, Words()) for rule in ("tail", "head"))
    assert tail.document.split()[0] == "w0"
    assert head.document.split()[-1] == "w899"
    for found in (tail, head):
        assert len(Words().encode(found.document)) <= 600
    chinese = cut(asked("字" * 900), "tail", 300, Bytes())
    assert 90 <= len(chinese.document) <= 100
    assert cut(item, "skip", 600, Words()) is None


def test_published_lengths_are_cut_to():
    assert official_length("middle", 4096, 128) == 3500
    assert official_length("middle", 8192, 128) == 7500
    assert official_length("middle", 512, 128) == 512 - 128 - 16


@pytest.mark.parametrize("rule", ["tail", "head"])
def test_documents_of_leval_leave_space_for_the_answer_in_thousands(rule):
    """Its program counts 4k as 4,000, and takes 512 tokens of answer off."""
    assert official_length(rule, 4096, 512) == 3488
    assert official_length(rule, 8192, 512) == 7488


def test_multi_document_prompts_are_left_out_from_the_window_on_and_pairs_never():
    """The program of MDQA skips prompts of more than 4,096 tokens; that of KV skips none."""
    assert official_length("skip", 4096, 100) == 4096
    rules = {task.name.split("/")[0]: task.cut for task in multidoc.tasks(Source())}
    assert rules == {"mdqa": "skip", "kv": None}
