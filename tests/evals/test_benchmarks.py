"""Benchmarks from folders in their official layouts; the records here are our own."""

import gzip
import json
import random
import sys
import types

import pytest

from selfextend_rag.evals.benchmarks import (
    BenchmarkError,
    Item,
    Question,
    Source,
    SyntheticOptions,
    babilong,
    infinitebench,
    leval,
    longbench,
    multidoc,
    selected_tasks,
)
from selfextend_rag.evals.benchmarks.cutting import cut, official_length
from selfextend_rag.evals.benchmarks.generated import haystack, ruler
from selfextend_rag.evals.metrics import infinitebench as metrics
from selfextend_rag.evals.metrics import retrieval
from tests.tiny import byte_tokenizer

SMALL = SyntheticOptions(lengths=(1500,), samples=2, seed=1, depths=3)


class Bytes:
    """A token a byte, after a start token."""

    def encode(self, text):
        return [0, *byte_tokenizer()(text, add_special_tokens=False)["input_ids"]]

    def decode(self, tokens):
        return byte_tokenizer().decode(tokens, skip_special_tokens=True)


class Words:
    """A token a word or space, which is fast."""

    def encode(self, text):
        return ["", *text.replace(" ", "\x00 \x00").split("\x00")]

    def decode(self, tokens):
        return "".join(tokens)


def lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def prompt(item, place=0):
    question = item.questions[place]
    return item.before + item.document + question.text + question.begin


def items(name, folder, options=SMALL, tokens=None):
    tasks, _ = selected_tasks([name], Source(folder), options)
    (task,) = tasks
    return task, list(task.items(tokens or Words()))


LONGBENCH = {
    "input": "Who?",
    "context": "Anna came.",
    "answers": ["Anna", "She"],
    "length": 4100,
    "all_classes": None,
    "_id": "a1",
}


def test_longbench_has_21_tasks_with_prompts_for_each():
    tasks = longbench.tasks(Source())
    assert len(tasks) == 21
    assert {*longbench.PROMPTS} == {*longbench.MAX_NEW_TOKENS}


def test_longbench_is_read_from_its_layout_or_one_above_it(tmp_path):
    lines(tmp_path / "LongBench/data/hotpotqa.jsonl", LONGBENCH)
    for folder in (tmp_path, tmp_path / "LongBench", tmp_path / "LongBench/data"):
        task, (item,) = items("longbench", folder)
        assert task.name == "longbench/hotpotqa"
        assert (task.prompt, item.id, item.groups) == ("own", "a1", {"words": "4-8k"})
        assert prompt(item).endswith("Question: Who?\nAnswer:")
        assert "Anna came." in item.document
        assert task.score(item.questions[0], "it was anna")["score"] == 50


def test_official_prompts_of_the_folder_are_used(tmp_path):
    lines(tmp_path / "data/lcc.jsonl", {**LONGBENCH, "context": "a = {1}\n", "input": ""})
    config = tmp_path / "config"
    config.mkdir()
    (config / "dataset2prompt.json").write_text(json.dumps({"lcc": "Go. {context}Next:\n"}))
    task, (item,) = items("longbench/lcc", tmp_path)
    assert (task.prompt, prompt(item)) == ("official", "Go. a = {1}\nNext:\n")
    assert not item.chat


def test_leval_asks_all_questions_of_a_document(tmp_path):
    record = {
        "input": "A long text.",
        "instructions": ["First? (A) x (B) y", "Second?"],
        "outputs": ["(B) y", "(A) x"],
        "evaluation": "exam",
    }
    lines(tmp_path / "LEval-data/Closed-ended-tasks/quality.jsonl", record)
    task, (item,) = items("leval/quality", tmp_path)
    assert [question.id for question in item.questions] == ["0", "1"]
    assert prompt(item).endswith("any explanation.\nAnswer:")
    assert task.score(item.questions[0], "B")["score"] == 100
    assert task.score(item.questions[1], "see B")["score"] == 0
    assert len(leval.tasks(Source())) == 20


def test_leval_leaves_out_what_is_for_judges_unless_all_is(tmp_path):
    path = tmp_path / "Open-ended-tasks/meeting_summ.jsonl"
    record = {"input": "Text.", "instructions": ["Sum up."], "outputs": ["one two three"]}
    judged, scored = {**record, "evaluation": "LLM"}, {**record, "evaluation": "rouge"}
    lines(path, judged, scored)
    task, found = items("leval/meeting_summ", tmp_path)
    assert len(found) == 1
    assert "in 3 words" in prompt(found[0])
    assert task.score(found[0].questions[0], "one two three")["score"] == pytest.approx(100)
    lines(path, judged)
    assert len(items("leval/meeting_summ", tmp_path)[1]) == 1


def test_the_rouge_of_a_subset_is_that_of_its_means():
    pytest.importorskip("rouge_score", reason="comes with the extra evals")
    task = next(task for task in leval.tasks(Source()) if "patent" in task.name)
    rows = [
        {"rouge1": 100.0, "rouge2": 0.0, "rougeL": 100.0, "score": 0.0},
        {"rouge1": 0.0, "rouge2": 100.0, "rougeL": 0.0, "score": 0.0},
    ]
    assert task.summary(rows) == pytest.approx(50)


def test_leval_asks_about_our_world_without_the_novel(tmp_path):
    record = {
        "input": "On Mars.",
        "instructions": ["Is it so, based on the world described in the document.?", "And this?"],
        "outputs": ["True [fact: False]", "False [fact: False]"],
        "evaluation": "exam",
    }
    lines(tmp_path / "sci_fi.jsonl", record)
    task, (novel, world) = items("leval/sci_fi", tmp_path)
    assert "On Mars." in prompt(novel)
    assert "On Mars." not in prompt(world)
    assert prompt(world).startswith("Question: Is it so, based on the real-world knowledge")
    assert prompt(world, 1) == "Question: And this?\nAnswer:"
    assert len(novel.questions) == len(world.questions)  # so that a limit takes as many of each
    rows = [task.score(novel.questions[0], "True"), task.score(world.questions[0], "true")]
    assert [row["score"] for row in rows] == [100, 0]
    assert task.summary([*rows, rows[0]]) == 50  # of halves, not of rows


def test_multi_document_questions_and_keys(tmp_path):
    record = {
        "question": "who won",
        "answers": ["Ada"],
        "ctxs": [{"title": "A", "text": "Ada won."}, {"title": "B", "text": "Bo lost."}],
    }
    lines(
        tmp_path / "qa_data/10_total_documents/nq-open-10_total_documents_gold_at_4.jsonl.gz",
        record,
    )
    task, (item,) = items("mdqa", tmp_path)
    assert "Document [1](Title: A) Ada won.\nDocument [2](Title: B) Bo lost." in prompt(item)
    assert item.groups == {"gold_at": 4, "documents": 2}
    assert task.score(item.questions[0], "Ada Lee")["score"] == 100
    assert task.score(item.questions[0], "\n\nAda Lee\nBo")["score"] == 100
    assert task.score(item.questions[0], "\nBo\nAda Lee")["score"] == 0
    pairs = [[f"k{i}", f"v{i}"] for i in range(75)]
    record = {"ordered_kv_records": pairs, "key": "k3", "value": "v3"}
    lines(tmp_path / "kv_retrieval_data/kv-retrieval-75_keys.jsonl", record)
    _, (given,) = items("kv/75/as_given", tmp_path)
    _, (moved,) = items("kv/75/gold_at_74", tmp_path)
    assert given.document.startswith('{"k0": "v0",\n "k1"')
    assert moved.document.endswith('"k3": "v3"}')
    assert (given.groups["depth"], moved.groups["depth"]) == (0.0, 1.0)


def test_official_prompts_of_lost_in_the_middle_are_used(tmp_path):
    lines(
        tmp_path / "qa_data/nq-open-oracle.jsonl.gz",
        {"question": "q", "answers": ["a"], "ctxs": []},
    )
    folder = tmp_path / "src/lost_in_the_middle/prompts"
    folder.mkdir(parents=True)
    (folder / "qa.prompt").write_text("See {search_results} {question}\n\n")
    task, (item,) = items("mdqa", tmp_path)
    assert (task.prompt, prompt(item)) == ("official", "See  q")


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


def test_longeval_is_asked_as_its_records_say(tmp_path):
    text = (
        "Remember.\nline a-b: REGISTER_CONTENT is <7>\n\nNow the record is over. Which in line a-b?"
    )
    record = {"prompt": text, "expected_number": 7, "random_idx": ["a-b", 100]}
    lines(tmp_path / "lines/testcases/200_lines.jsonl", record)
    task, (item,) = items("longeval/lines", tmp_path)
    assert prompt(item) == text
    assert item.questions[0].text.startswith("\n\nNow the record is over")
    assert item.groups == {"lines": 200, "depth": 0.5}
    assert task.score(item.questions[0], "it is 7")["score"] == 100


def test_books_shorter_than_the_length_are_left_out(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "1.txt").write_text("word " * 900)
    (tmp_path / "test" / "2.txt").write_text("word " * 100)
    tasks, _ = selected_tasks(["pg19"], Source(tmp_path), SMALL)
    (book,) = tasks[0].items(Words())
    assert (book.id, book.predict_tokens) == ("1", 1500)
    rows = [
        {"nll": 2.0, "tokens": 4.0, "words": 2.0},
        {"nll": 4.0, "tokens": 2.0, "words": 1.0},
    ]
    assert tasks[0].summary(rows) == pytest.approx(2.718281828)
    assert tasks[0].further(rows)["word_perplexity"] == pytest.approx(2.718281828**2)
    without_spaces = [{"nll": 9000.0, "tokens": 3000.0, "words": 3.0}]
    assert tasks[0].further(without_spaces) == {}  # it ended the run, after all of its work


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


def test_no_answer_ends_at_a_line_end_before_its_first_word(tmp_path):
    """A line end at once gave an empty answer, which scores 0, where the programs skip it."""
    pytest.importorskip("rouge", reason="comes with the extra evals")
    lines(tmp_path / "data/samsum.jsonl", {**LONGBENCH, "answers": ["Anna came"]})
    task, (item,) = items("longbench/samsum", tmp_path)
    assert not hasattr(item.questions[0], "stop")
    assert task.score(item.questions[0], "\nAnna came\n\nDialogue:")["score"] == pytest.approx(100)


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


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(BenchmarkError, match="no data for leval"):
        selected_tasks(["leval"], Source(tmp_path), SMALL)
    with pytest.raises(BenchmarkError, match="no task; there are those of longbench"):
        selected_tasks(["magic"], Source(tmp_path), SMALL)
    with pytest.raises(BenchmarkError, match="no folder of data"):
        Source.of(str(tmp_path / "none"))
    lines(tmp_path / "data/qasper.jsonl", LONGBENCH)
    found, missing = selected_tasks(["longbench"], Source(tmp_path), SMALL)
    assert (len(found), len(missing)) == (1, 20)
    lacking = {name: value for name, value in LONGBENCH.items() if name != "context"}
    lines(tmp_path / "data/qasper.jsonl", LONGBENCH, lacking)
    with pytest.raises(BenchmarkError, match=r"qasper.jsonl, line 2: has no 'context', only input"):
        list(found[0].items(Words()))
    (tmp_path / "data/qasper.jsonl").write_text("{")
    with pytest.raises(BenchmarkError, match=r"can't read .*qasper"):
        list(found[0].items(Words()))


def test_data_sets_of_the_hub_are_read_by_datasets(monkeypatch):
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return [LONGBENCH]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    (task,), _ = selected_tasks(["longbench/qasper"], Source.of("owner/name"), SMALL)
    assert next(task.items(Words())).id == "a1"
    (task,), _ = selected_tasks(["longbench/qasper"], Source(), SMALL)
    assert next(task.items(Words())).id == "a1"
    assert asked == [("owner/name", "qasper", "test"), ("THUDM/LongBench", "qasper", "test")]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BenchmarkError, match=r"no data for longbench .*the library datasets"):
        selected_tasks(["longbench"], Source(), SMALL)  # and not after hours of other tasks
    with pytest.raises(BenchmarkError, match="pip install datasets"):
        next(task.items(Words()))


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
