"""`benchmarks/methods.py` continues its file, and the page shows what the file holds.

And `benchmarks/evals_cost.py` runs the same questions with and without the harness.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from selfextend_rag import Reading
from selfextend_rag.evals.methods import LoadedModel, MethodOptions, methods_of
from tests.tiny import byte_tokenizer, tiny_llama

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "methods.md"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "benchmarks" / "methods.py"))


def test_the_page_shows_the_tables_of_the_committed_results(script):
    rows = script["read"](script["RESULTS"])
    shown = PAGE.read_text("utf-8").partition("<!-- results -->\n")[2].partition("<!-- end -->")[0]
    assert shown.strip() == script["tables"](rows).strip()


def test_a_broken_off_run_is_continued_and_computes_nothing_twice(
    script, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "rows.jsonl"
    options = ["--times", "1", "--tasks", "passkey", "--methods", "plain", "string"]
    monkeypatch.setattr(sys, "argv", ["methods.py", *options, "--samples", "1", "--out", str(out)])
    script["main"]()
    first = out.read_text("utf-8")
    assert [json.loads(row)["method"] for row in first.splitlines()] == ["plain", "string"]
    out.write_text(first.splitlines()[0] + '\n{"task": "pass', "utf-8")
    script["main"]()
    again = [json.loads(row) for row in out.read_text("utf-8").splitlines()]
    timeless = [{**row, "cpu_seconds": 0} for row in again]
    assert timeless == [{**json.loads(row), "cpu_seconds": 0} for row in first.splitlines()]
    script["main"]()
    assert len(out.read_text("utf-8").splitlines()) == 2
    assert "| string | " in capsys.readouterr().out


def test_cells_count_right_answers_and_say_what_is_not_reached(script):
    rows = [{"right": x} for x in (True, True, False, True)]
    assert script["cell"]("passkey", rows) == "3/4 (0.30-0.95)"
    assert script["cell"]("passkey", [*rows, {"refused": "reaches 9 tokens"}]) == "-"
    texts = [{"nll": 10.0, "tokens": 4}, {"nll": 2.0, "tokens": 2}]
    assert script["cell"]("perplexity", texts) == "7.4"  # e ** 2


def test_more_texts_leave_the_earlier_ones_where_they_were(script):
    assert [script["place"](i) for i in range(6)] == [0, 0.5, 0.25, 0.75, 0.125, 0.625]


def test_the_cost_of_the_harness_is_that_of_the_same_answers(monkeypatch):
    """It asked for a field that questions no longer had."""
    cost = runpy.run_path(str(ROOT / "benchmarks" / "evals_cost.py"))
    loaded = LoadedModel("tiny", tiny_llama(window=512).eval(), byte_tokenizer())
    (method,) = methods_of(["selfextend"], loaded, MethodOptions())
    task, asked = cost["many_questions"](2), []
    plain = Reading.ask_batch

    def ask_batch(reading, questions, **named):
        asked.append([dict(question) for question in questions])
        return plain(reading, questions, **named)

    monkeypatch.setattr(Reading, "ask_batch", ask_batch)
    assert cost["bare"](task, loaded, method.llm_for(next(task.items(loaded)))) > 0
    assert cost["harness"](task, loaded, method) > 0
    assert asked[: len(asked) // 2] == asked[len(asked) // 2 :] != []
