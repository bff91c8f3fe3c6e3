"""Generated benchmarks: prompts of a wanted length that hold their answers."""

import json
import random
import re

import pytest

from selfextend_rag.evals.benchmarks import (
    BenchmarkError,
    SyntheticOptions,
)
from selfextend_rag.evals.benchmarks.generated import facts, haystack, ruler
from tests.evals.records import Words, items, lines, prompt


@pytest.mark.parametrize("name", [*ruler.MAKERS, "passkey/5", "passkey/64", "needle"])
def test_generated_prompts_fit_and_hold_their_answers(name):
    path = name if "/" in name or name == "needle" else f"ruler/{name}"
    task, found = items(f"{path}/1500", None)
    again = items(f"{path}/1500", None)[1]
    assert found == again
    assert len({prompt(item) for item in found}) == len(found)
    for item in found:
        tokens = len(Words().encode(prompt(item))) + item.questions[0].max_new_tokens
        assert tokens <= 1500
        assert tokens > 1500 * 0.8
        (gold,) = item.questions[0].gold.values()
        answers = [gold] if isinstance(gold, str) else gold
        assert all(answer in item.document for answer in answers)
        assert task.score(item.questions[0], " ".join(answers))["score"] == 100
        assert task.score(item.questions[0], "?")["score"] == 0


def test_a_needle_is_in_the_first_line_of_the_answer():
    task, (item, *_) = items("needle/1500", None)
    thing = item.questions[0].gold["thing"]
    assert task.score(item.questions[0], f"\n\nIt is to {thing}.\nQ")["score"] == 100
    assert task.score(item.questions[0], f"I do not know.\n{thing}")["score"] == 0


def test_common_words_are_the_most_common():
    _, (item, _) = items("ruler/cwe/1500", None)
    words = item.document.split()[1::2]
    often = [word for word in {*words} if words.count(word) == 6]
    assert sorted(often) == sorted(item.questions[0].gold["outputs"])
    assert max(words.count(word) for word in {*words} - {*often}) == 1


def test_frequent_words_are_the_most_frequent_and_differ_in_number():
    _, (item, _) = items("ruler/fwe/1500", None)
    words = item.document.split()
    counts = sorted(((words.count(w), w) for w in {*words} - {"...."}), reverse=True)
    assert [w for _, w in counts[:3]] == item.questions[0].gold["outputs"]
    assert counts[0][0] > counts[1][0] > counts[2][0] > counts[3][0]


@pytest.mark.parametrize("name", ["passkey/5/1500", "needle/1500"])
def test_depths_of_less_than_a_hundredth_are_items_of_their_own(name):
    options = SyntheticOptions(lengths=(1500,), samples=1, depths=201)
    _, found = items(name, None, options)
    assert len({item.id for item in found}) == 201


def test_depths_of_pass_keys_are_those_of_the_text():
    _, found = items("passkey/10/1500", None)
    for item in found:
        place = item.document.index("The pass key") / len(item.document)
        assert place == pytest.approx(item.groups["depth"], abs=0.1)


def test_files_of_official_generators_are_used(tmp_path):
    record = {
        "index": 3,
        "input": "Text.\nWhat?",
        "outputs": ["1"],
        "answer_prefix": " It is",
        "length": 9,
    }
    lines(tmp_path / "vt/validation.jsonl", record)
    _, (item,) = items("ruler/vt/official", tmp_path)
    assert (item.id, prompt(item)) == ("0", "Text.\nWhat? It is")
    squad = {"data": [{"paragraphs": [
        {"context": f"Fact {n}.", "qas": [{"question": f"q{n}", "answers": [{"text": f"a{n}"}]}]}
        for n in range(4)
    ]}]}  # fmt: skip
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    _, (item, _) = items("ruler/qa_1/1500", tmp_path)
    gold = item.questions[0].gold["outputs"][0]
    assert f"Fact {gold[1:]}." in item.document
    assert f"Question: q{gold[1:]}" in prompt(item)


def test_longlm_pass_keys_are_asked_as_its_example_does(tmp_path):
    for name, key in (("", "4"), ("_32k", "5")):
        record = {"input": f"The pass key is {key}.\n", "target": key}
        lines(tmp_path / f"passkey_examples{name}.jsonl", record)
    lines(tmp_path / "passkey.jsonl", {"context": "another benchmark's"})
    _, (item, longer) = items("passkey/longlm", tmp_path)
    assert prompt(item) == "The pass key is 4.\nWhat is the pass key? The pass key is "
    assert longer.questions[0].gold == {"answer": "5"}  # of all files, not of the first alone


def test_facts_are_hidden_in_order_at_their_depths():
    found = haystack.hidden(["a", "b", "c", "d"], ["X", "Y"], [1.0, 0.5])
    assert found == ["a", "b", "Y", "c", "d", "X"]


def test_what_can_not_fit_is_refused():
    with pytest.raises(BenchmarkError, match="too few"):
        haystack.fitted(lambda units: "x" * 100 * units, len, 50)
    rng = random.Random(0)
    assert len(haystack.digits(rng, 64)) == 64
    many = haystack.words(rng, 9000)
    assert len(set(many)) == 9000
    assert len({word[:4] for word in many}) > 1000  # once, the first words of the alphabet alone


@pytest.mark.parametrize("name", ["two", "chain", "list", "count"])
def test_questions_on_several_facts_fit_hold_them_and_have_wrong_answers_of_the_same_form(name):
    task, found = items(f"facts/{name}/1500", None)
    assert found == items(f"facts/{name}/1500", None)[1]
    assert len({prompt(item) for item in found}) == len(found)
    for item in found:
        (question,) = item.questions
        assert 1200 < len(Words().encode(prompt(item))) + question.max_new_tokens <= 1500
        assert all(fact in item.document for fact in question.evidence)
        assert task.score(question, question.answer)["score"] == 100
        assert len({question.answer, *question.others}) == 1 + len(question.others)
        assert all(task.score(question, wrong)["score"] < 100 or name == "two"
                   for wrong in question.others)  # fmt: skip
        assert {len(x.split()) for x in question.others} == {len(question.answer.split())}


@pytest.mark.parametrize("name", ["two", "chain", "list", "count"])
def test_the_answer_is_what_the_text_says_of_what_is_asked(name):
    """Read out of the text by a pattern, and not from what made it."""
    for item in items(f"facts/{name}/1500", None)[1]:
        (question,) = item.questions
        asked, text = question.query, item.document
        value = {who: x for who, x in re.findall(r"of ((?:\w+ )?\w+) is (\w+(?: \w+)?)\.", text)}
        members = re.findall(r"(\w+ \w+) is one of the \w+ of (\w+)\.", text)
        if name == "two":
            one, other = re.search(r"of (\w+ \w+) and (\w+ \w+)\?", asked).groups()
            expected = f"{value[one]} and {value[other]}"
        elif name == "chain":
            expected = value[value[re.search(r"of (\w+)\?", asked)[1]]]
        else:
            of = re.search(r"(\w+)(?: have)?\?", asked)[1]
            people = [who for who, place in members if place == of]
            expected = f"{', '.join(people[:-1])} and {people[-1]}" if name == "list" else str(
                len(people)
            )  # fmt: skip
        assert question.answer == expected


def test_counts_are_of_all_sizes_and_lists_of_more_than_retrieval_brings():
    rng = random.Random(0)
    assert {int(facts.count(rng).answer) for _ in range(200)} == set(range(1, 9))
    assert len(facts.listed(rng).needed) > 3
