"""Many documents, the same questions: every answer once, whatever ends on the way."""

from __future__ import annotations

import json
import os
import signal

import pytest

from selfextend_rag import Document, ServerUnreachable, read_documents
from selfextend_rag.cli import main
from selfextend_rag.corpus import ModelSpec, run_corpus
from selfextend_rag.corpus.lines import ResultsError
from selfextend_rag.llm import LongContextLLM
from tests.llm.remote.fake import FakeServer
from tests.tiny import byte_tokenizer, tiny_llama

QUESTION = "What is the key?"


@pytest.fixture(scope="module")
def llm():
    return LongContextLLM(tiny_llama(window=128), byte_tokenizer(), max_group_size=4)


def documents(number):
    return [Document.from_text(f"The key is {n}.", title=f"house {n}") for n in range(number)]


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def test_every_document_has_the_answer_that_it_has_alone(llm, tmp_path):
    out, given = tmp_path / "rows.jsonl", documents(4)
    options = {"max_new_tokens": 6}
    result = run_corpus(given, [QUESTION, "Why?"], llm, out, **options)
    assert [row.status for row in result.rows] == ["answered"] * 8
    for row, (document, question) in zip(
        result.rows, ((x, q) for x in given for q in (QUESTION, "Why?")), strict=True
    ):
        reading = llm.read(document, question=[QUESTION, "Why?"], max_new_tokens=6)
        assert row.text == reading.ask(question, evidence=False).text
        assert row.documents == [{"id": document.id, "title": document.title, "source": None}]
    assert [row["key"] for row in lines(out)] == [row.key for row in result.rows]


def test_a_run_continues_where_another_stopped(llm, tmp_path):
    out, given = tmp_path / "rows.jsonl", documents(5)
    options = {"max_new_tokens": 4}

    class Stop(Exception):
        pass

    def stop(row, done, total):
        assert total == 5
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        run_corpus(given, QUESTION, llm, out, report=stop, **options)
    with out.open("a") as file:
        file.write('{"key": "unfinished')  # killed while it wrote
    result = run_corpus(given, QUESTION, llm, out, **options)
    assert (len(result.rows), result.computed) == (5, 2)
    assert len({row["key"] for row in lines(out)}) == len(lines(out)) == 5
    assert run_corpus(given, QUESTION, llm, out, **options).computed == 0
    assert run_corpus(given, QUESTION, llm, out, max_new_tokens=5).computed == 5
    assert run_corpus([*given, *given], QUESTION, llm, out, **options).computed == 0


def test_what_can_not_be_read_or_does_not_fit_is_a_row_with_its_error(llm, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.txt").write_text("The key is 1.")
    (folder / "b.pdf").write_bytes(b"%PDF-1.4 damaged")
    (folder / "c.txt").write_text("long " * 400)
    (folder / "d.png").write_bytes(b"\x89PNG\r\n")
    for together in (False, True):
        out = tmp_path / f"{together}.jsonl"
        found = read_documents(folder)
        result = run_corpus(found, QUESTION, llm, out, together=together, max_new_tokens=4)
        by_name = {row.documents[0]["source"].rpartition("/")[2]: row for row in result.rows}
        assert {name: row.status for name, row in by_name.items()} == {
            "a.txt": "answered",
            "b.pdf": "failed",
            "c.txt": "failed",
        }
        assert by_name["c.txt"].kind in ("ContextBudgetExceeded", "DocumentTooLarge")
        assert not by_name["c.txt"].again
        assert "b.pdf" in by_name["b.pdf"].error
        assert (
            run_corpus(found, QUESTION, llm, out, together=together, max_new_tokens=4).computed == 0
        )


def test_together_they_are_as_few_prompts_as_hold_them_whole(llm, tmp_path):
    given = [Document.from_text(f"{n} " * 30, title=str(n)) for n in range(8)]
    result = run_corpus(given, QUESTION, llm, tmp_path / "rows", together=True, max_new_tokens=4)
    groups = llm.plan_groups(given, question=QUESTION, max_new_tokens=4)
    assert [len(row.documents) for row in result.rows] == [len(x.documents) for x in groups]
    assert 1 < len(groups) < 8


def test_an_answer_for_a_schema_is_a_value_and_one_that_is_cut_off_is_none(tmp_path):
    llm = LongContextLLM.bundled()
    schema = {
        "type": "object",
        "properties": {"key": {"type": "integer"}},
        "required": ["key"],
        "additionalProperties": False,
    }
    out = tmp_path / "rows.parquet"
    given = documents(2)
    result = run_corpus(given, QUESTION, llm, out, json_schema=schema, max_new_tokens=40)
    assert [set(row.value) for row in result.rows] == [{"key"}, {"key"}]
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra ray is not installed")
    table = parquet.read_table(out).to_pylist()
    assert [json.loads(row["value"]) for row in table] == [row.value for row in result.rows]
    cut = run_corpus(given, QUESTION, llm, out, json_schema=schema, max_new_tokens=2)
    assert [row.kind for row in cut.failed] == ["cut off"] * 2


def test_a_server_answers_many_at_once_and_what_it_failed_is_asked_again(tmp_path):
    out, given = tmp_path / "rows.jsonl", documents(12)
    with FakeServer(slow=0.05) as server:
        spec = ModelSpec(None, server.url, context={"at_once": 4, "max_retries": 0})
        server.busy = [(429, "0")]
        first = run_corpus(given, QUESTION, spec, out)
        assert 1 < server.most <= 4
        assert [row.kind for row in first.failed] == ["ServerBusy"]
        again = run_corpus(given, QUESTION, spec, out)
        assert (again.computed, again.failed) == (1, ())
        assert [row.text.strip() for row in again.rows] == [str(n) for n in range(12)]
    with pytest.raises(ServerUnreachable):
        run_corpus(documents(13), QUESTION, spec, out)


def test_two_runs_do_not_write_one_file_and_other_files_are_left_alone(llm, tmp_path):
    out = tmp_path / "rows.jsonl"

    def second(row, done, total):
        with pytest.raises(ResultsError, match="another process"):
            run_corpus(documents(1), QUESTION, llm, out)

    run_corpus(documents(1), QUESTION, llm, out, report=second, max_new_tokens=4)
    other = tmp_path / "other.jsonl"
    other.write_text('{"a": 1}\n')
    with pytest.raises(ResultsError, match="line 1, is no row"):
        run_corpus(documents(1), QUESTION, llm, other)
    for wrong in ([], ["a", " "]):
        with pytest.raises(ValueError, match="questions"):
            run_corpus(documents(1), wrong, llm, out)
    with pytest.raises(ValueError, match="ModelSpec"):
        run_corpus(documents(2), QUESTION, llm, out, replicas=2)


def test_the_command_writes_rows_and_says_how_many(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("The pass key is 48213.")
    (tmp_path / "b.txt").write_text("The pass key is 77001.")
    out = str(tmp_path / "rows.jsonl")
    command = ["corpus", str(tmp_path), "--glob", "*.txt", "-q", "What is the pass key?", "-o", out]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["computed"], report["failed"]) == (2, 2, 0)
    assert [row["text"] for row in lines(tmp_path / "rows.jsonl")] == ["48213", "77001"]
    assert main(command) == 0
    assert "2 rows, 0 of them new" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_replica_loses_no_answer_and_none_comes_twice(tmp_path):
    """Two replicas, one killed half way: each document is answered once, as in the process."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with FakeServer(slow=0.02) as server:
        spec, given = ModelSpec(None, server.url), documents(40)
        killed = []

        def kill(row, done, total):
            if done == 15:
                killed.extend(_kill_a_replica())

        out = tmp_path / "rows.jsonl"
        result = run_corpus(given, QUESTION, spec, out, replicas=2, report=kill)
        assert len(killed) == 1
        assert [row.text.strip() for row in result.rows] == [str(n) for n in range(40)]
        assert len({row["key"] for row in lines(out)}) == len(lines(out)) == 40
        alone = run_corpus(given, QUESTION, spec, tmp_path / "alone.jsonl")
        assert [(x.key, x.text) for x in alone.rows] == [(x.key, x.text) for x in result.rows]


def _kill_a_replica():
    import psutil

    for process in psutil.Process().children(recursive=True):
        if any("_Replica" in part for part in process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            return [process.pid]
    return []
