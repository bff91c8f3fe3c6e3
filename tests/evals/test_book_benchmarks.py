"""BABILong and InfiniteBench, of texts as long as books; the records here are our own."""

import json
import sys
import types

import pytest

from selfextend_rag.evals.benchmarks import (
    BenchmarkError,
    Source,
    babilong,
    infinitebench,
    selected_tasks,
)
from selfextend_rag.evals.metrics import infinitebench as metrics
from selfextend_rag.evals.metrics import retrieval
from tests.evals.records import SMALL, Words, items, lines, prompt

BABILONG = {
    "input": "It rained. Mary went to the kitchen. The sea was calm.",
    "question": "Where is Mary? ",
    "target": "kitchen",
}


def test_babilong_is_asked_with_examples_before_the_text(tmp_path):
    path = tmp_path / "data/qa1/4k.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([BABILONG, BABILONG]))  # one list, as the data set has it
    task, (item, other) = items("babilong", tmp_path)
    assert (task.name, item.id, other.id) == ("babilong/qa1/4k", "0", "1")
    assert item.questions[0].max_new_tokens == 20
    begin, _, end = prompt(item).partition(f"<context>\n{BABILONG['input']}\n</context>\n")
    assert begin.count("<example>") == begin.count("</example>") == begin.count("Answer: ") == 2
    assert end == "Question: Where is Mary?"
    right = "The most recent location of Mary is kitchen. Not the office."
    assert task.score(item.questions[0], right)["score"] == 100
    assert task.score(item.questions[0], "\n kitchen or office")["score"] == 0


def test_examples_of_babilong_are_answered_as_its_metric_reads_them():
    """Their names and places are not those of its data, of which they would be answers."""
    assert {name for name, *_ in babilong._TASKS.items()} <= {*retrieval.BABILONG_LABELS}
    for name, (_, examples, form) in babilong._TASKS.items():
        words = {*retrieval.BABILONG_LABELS[name]}
        for asked, answer in examples:
            if name in ("qa6", "qa7", "qa9", "qa10"):  # of few words, any of which is an answer
                found = retrieval.only_label(answer, answer, asked.rpartition(". ")[2], name)
                assert found == (answer != "none")  # which names "one", in the official program too
                assert name == "qa7" or answer in form
            elif answer != "nothing":
                assert not any(word in f"{asked} {answer}".lower() for word in words)


def test_babilong_of_the_hub_is_by_length_and_task(monkeypatch):
    asked = []

    def load(*given, **named):
        asked.append((given, named))
        return [BABILONG]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    (task,), _ = selected_tasks(["babilong/qa3/16k"], Source(), SMALL)
    assert len(list(task.items(Words()))) == 1
    assert asked == [(("RMT-team/babilong", "16k"), {"split": "qa3"})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[3]", r"record 0: must be a JSON object"),
        ("\n3\n", r"line 2: must be a JSON object"),
        ('[{"input": "', r"can't read .*0k\.json"),
        ('[{"input": "", "question": ""}]', r"record 0: has no 'target', only input, question"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, said):
    path = tmp_path / "qa1/0k.json"
    path.parent.mkdir()
    path.write_text(text)
    (task,), _ = selected_tasks(["babilong"], Source(tmp_path), SMALL)
    with pytest.raises(BenchmarkError, match=said):
        list(task.items(Words()))


def infinite(tmp_path, name, **record):
    record = {"id": 3, "context": "The text.", "input": "What?", "answer": ["x"], **record}
    lines(tmp_path / f"InfiniteBench/{name}.jsonl", record)
    task, (item,) = items(f"infinitebench/{name}", tmp_path)
    return task, item


def test_infinitebench_has_twelve_tasks_with_a_prompt_and_a_metric_for_each():
    names = [task.name.partition("/")[2] for task in infinitebench.tasks(Source())]
    assert len(names) == 12
    assert {*names} == {*infinitebench.MAX_NEW_TOKENS} == {*metrics.METRICS}


def test_infinitebench_is_asked_after_the_text_and_begins_the_answer(tmp_path):
    task, item = infinite(tmp_path, "passkey", answer=["71432"], input="What is it?")
    assert prompt(item).endswith("\n\nThe text.\n\nWhat is it?\nThe pass key is")
    assert item.questions[0].begin == "\nThe pass key is"  # of a chat, the assistant's
    assert (task.cut, item.id, item.questions[0].evidence) == ("middle", "0", ("71432",))
    assert task.score(item.questions[0], " 71432. Or 3")["score"] == 100
    code = "Please give me the value of func_12(-7)."
    task, item = infinite(tmp_path, "code_run", input=code, answer=[-5])
    assert prompt(item).endswith("Work out the value of func_12(-7).\nfunc_12(-7) is")
    assert task.score(item.questions[0], " -5.")["score"] == 100


@pytest.mark.parametrize(
    ("answer", "right"), [(["two"], ["two", "B"]), ("two", ["two", "B"]), (["two", "B"],) * 2]
)
def test_options_of_infinitebench_are_right_by_text_or_letter(tmp_path, answer, right):
    options = ["one", "two", "three", "{input}"]
    task, item = infinite(tmp_path, "longbook_choice_eng", answer=answer, options=options)
    (question,) = item.questions
    assert "Question: What?\nA. one\nB. two\nC. three\nD. {input}\n" in prompt(item)
    assert (question.gold["answers"], question.answer, question.evidence) == (right, "B", ())
    assert task.score(question, " B")["score"] == 100
    assert task.score(question, "the answer is two")["score"] == 100
    assert task.score(question, "C")["score"] == 0


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        ("longbook_choice_eng", {"options": list("abcd"), "answer": ["e"]}, "none of the options"),
        ("code_run", {"input": "What?"}, "calls no function"),
        ("passkey", {"answer": []}, "no right answer"),
    ],
)
def test_records_of_infinitebench_that_can_not_be_asked_are_named(tmp_path, name, record, said):
    with pytest.raises(BenchmarkError, match=rf"{name}.jsonl, line 1: .*{said}"):
        infinite(tmp_path, name, **record)
