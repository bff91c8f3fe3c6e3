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


@pytest.mark.parametrize("name", ["facts", "gemma"])
def test_the_page_shows_the_tables_of_committed_summaries(name):
    table = runpy.run_path(str(ROOT / "benchmarks" / "eval_table.py"))["table"]
    kept = json.loads((PAGE.parent / "results" / f"{name}.json").read_text("utf-8"))
    shown = PAGE.read_text("utf-8").partition(f"<!-- table: {name} -->\n")[2]
    assert shown.partition("\n<!-- end -->")[0] == table(kept)


def test_a_published_table_replaces_what_is_between_its_own_marks_alone(tmp_path, monkeypatch):
    """An empty place had no line before its end, and the page was cut up to the next one."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "eval_table.py"))
    page = tmp_path / "page.md"
    marks = ("<!-- table: one -->\n<!-- end -->", "<!-- table: two -->\nold\n<!-- end -->")
    page.write_text(f"A\n{marks[0]}\nB\n{marks[1]}\nC\n")
    place = script["publish"].__globals__
    monkeypatch.setitem(place, "PAGE", page)
    monkeypatch.setitem(place, "RESULTS", tmp_path)
    nothing = {key: None for key in script["ABOUT"]} | {
        "options": {"answer_tokens": 8},
        "tasks": {},
    }
    for name in ("two", "one", "one"):
        script["publish"](name, [nothing])
    table = script["table"]([nothing])
    one, two = (f"<!-- table: {name} -->\n{table}\n<!-- end -->" for name in ("one", "two"))
    assert page.read_text() == f"A\n{one}\nB\n{two}\nC\n"
    assert json.loads((tmp_path / "one.json").read_text()) == [nothing]
    with pytest.raises(ValueError, match="no place for a table 'three'"):
        script["publish"]("three", [nothing])
    script["publish"]("one", [nothing | {"model": str(tmp_path)}], "a model")
    assert json.loads((tmp_path / "one.json").read_text()) == [nothing | {"model": "a model"}]
    with pytest.raises(ValueError, match="name the model"):
        script["publish"]("one", [nothing | {"model": str(tmp_path)}])


def test_a_table_has_what_was_measured_and_is_bold_where_it_is_beyond_chance():
    table = runpy.run_path(str(ROOT / "benchmarks" / "eval_table.py"))["table"]
    found = {"answered": 9, "refused": 1, "skipped": 0, "items": 9, "score": 12.4, "interval": None}
    found |= {"gold_nll": 1.234, "gold_nll_interval": (1.0, 2.0)}
    lost = {"answered": 0, "refused": 9, "skipped": 0, "items": 0}
    difference = {"difference": 0.5, "interval": (0.1, 0.9), "items": 9}
    task = {
        "columns": {"bm25": found, "oracle": lost, "plain": found},
        "differences": [
            {"column": "bm25", "over": "selfextend", "gold_nll": difference},
            {"column": "selfextend", "over": "plain", "gold_nll": difference},
        ],
    }
    full, short = ({"options": {"answer_tokens": n}, "tasks": {"kv": task}} for n in (None, 8))
    lines = table([full]).splitlines()
    assert lines[2] == (
        "| kv | bm25 | 9, 1 left out | 12 | 1.23 (1.00 to 2.00) | **+0.50** (+0.10 to +0.90) |"
    )
    assert lines[4].endswith("| **-0.50** (-0.90 to -0.10) |")  # the other way around
    assert lines[3] == "|  | oracle | 0, 9 left out |  |  |  |"
    assert "| 9, 1 left out | 1.23 (" in table([short])  # of answers that were ended early


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
    assert script["cell"]("passkey", rows, []) == "3/4 (0.30-0.95)"
    assert script["cell"]("passkey", [*rows, {"refused": "reaches 9 tokens"}], []) == "-"
    texts = [{"sample": 0, "nll": 10.0, "tokens": 4}, {"sample": 1, "nll": 2.0, "tokens": 2}]
    assert script["cell"]("perplexity", texts, []) == "7.4"  # e ** 2


def test_texts_are_compared_with_selfextend_one_by_one(script):
    base = [{"sample": n, "nll": 10.0 * n, "tokens": 10} for n in range(6)]
    worse = [{**row, "nll": row["nll"] + 5} for row in base]  # by 0.5 a token, of each text
    assert script["cell"]("perplexity", worse, base).endswith("(+0.500 to +0.500)")
    assert script["cell"]("perplexity", base, base).endswith("12.2")


def test_tables_are_of_the_latest_model_and_of_samples_that_all_methods_have(script):
    def row(weights, method, sample, right):
        named = {"weights": weights, "method": method, "sample": sample, "right": right}
        model = {"model": "tiny", "window": 64, "dtype": "torch.float32"}
        return {"task": "passkey", "times": 2, **named, **model}

    rows = [row("old", "plain", 0, False)]
    rows += [row("new", method, n, True) for n in range(2) for method in ("plain", "selfextend")]
    table = script["tables"]([*rows, row("new", "plain", 2, True)])
    assert table.startswith("Model `tiny` (fingerprint `new`), a window of 64 tokens, float32.")
    assert table.count("2/2") == 2
    assert "3/3" not in table
    assert "0/1" not in table


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
