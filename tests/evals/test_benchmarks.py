"""Benchmarks from folders in their official layouts; the records here are our own."""

import json
import sys
import types

import pytest

from selfextend_rag.evals.benchmarks import (
    BenchmarkError,
    Source,
    leval,
    longbench,
    selected_tasks,
)
from tests.evals.records import LONGBENCH, SMALL, Words, items, lines, prompt


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


def test_no_answer_ends_at_a_line_end_before_its_first_word(tmp_path):
    """A line end at once gave an empty answer, which scores 0, where the programs skip it."""
    pytest.importorskip("rouge", reason="comes with the extra evals")
    lines(tmp_path / "data/samsum.jsonl", {**LONGBENCH, "answers": ["Anna came"]})
    task, (item,) = items("longbench/samsum", tmp_path)
    assert not hasattr(item.questions[0], "stop")
    assert task.score(item.questions[0], "\nAnna came\n\nDialogue:")["score"] == pytest.approx(100)


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
