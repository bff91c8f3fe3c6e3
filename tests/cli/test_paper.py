"""`benchmarks/paper.sh`: what it would run is what the program takes, and what its table says."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from selfextend_rag.cli.app import app
from selfextend_rag.evals.benchmarks import Source, SyntheticOptions, all_tasks, leval, longbench
from selfextend_rag.evals.benchmarks.items import Task
from selfextend_rag.evals.suite.rows import Column, Results, Row
from selfextend_rag.evals.suite.summary import summary_of
from selfextend_rag.planning.planner import ContextBudgetPlanner
from selfextend_rag.positions import SelfExtend
from tests.evals.records import lines
from tests.tiny import byte_tokenizer, tiny_llama

ROOT = Path(__file__).parents[2]
PAPER = runpy.run_path(str(ROOT / "benchmarks" / "paper.py"))
FILE = PAPER["published"]()
RUNS = [(name, run) for name, model in FILE["models"].items() for run in model["runs"]]
EACH_RUN = pytest.mark.parametrize(
    ("name", "run"), RUNS, ids=[f"{name}-{run['name']}" for name, run in RUNS]
)


def shell(folder, *arguments):
    """Run the script with a stand-in for the program, which notes how it was called."""
    program = folder / "selfextend-rag"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {shlex.quote(str(folder / "calls"))}\n'
        'case "$*" in *leval-plain*) exit 2 ;; esac\n'
    )
    program.chmod(0o755)
    variables = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHON": sys.executable}
    script = ROOT / "benchmarks" / "paper.sh"
    return subprocess.run(
        ["bash", str(script), *arguments], env=variables, cwd=folder, capture_output=True, text=True
    )


def called(folder):
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_commands_of_a_dry_run_are_what_the_program_takes_and_none_is_run(tmp_path):
    done = shell(tmp_path, "DRY_RUN=1", "DATA=a folder", "LIMIT=3")
    assert (done.returncode, done.stderr) == (0, "")
    commands = [shlex.split(x[2:]) for x in done.stdout.splitlines() if x.startswith("$ ")]
    assert len(commands) == len(RUNS)
    program = typer.main.get_command(app)
    for words in commands:
        assert words[:2] == ["selfextend-rag", "eval"]
        context = program.commands["eval"].make_context("eval", words[2:])
        assert context.params["data"] == "a folder"
        assert context.params["limit"] == 3
    assert called(tmp_path) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "selfextend-rag"]


@pytest.mark.slow
def test_a_model_with_random_weights_goes_all_the_way_to_its_table(tmp_path):
    """Weights and records from folders, in the form that users have them; nothing stands in."""
    tiny_llama(window=2048).save_pretrained(tmp_path / "weights" / "phi-2")
    byte_tokenizer().save_pretrained(tmp_path / "weights" / "phi-2")
    record = {"instructions": ["A, B, C or D?"] * 2, "outputs": ["A", "B"], "source": "x",
              "input": "It is said. " * 900, "evaluation": "exam"}  # fmt: skip
    lines(tmp_path / "data/LEval-data/Closed-ended-tasks/quality.jsonl", record)
    program = tmp_path / "selfextend-rag"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m selfextend_rag "$@"\n')
    program.chmod(0o755)
    chosen = ("DEVICE=cpu", "WEIGHTS=weights", "DATA=data", "MODELS=phi-2", "TASKS=leval/quality")
    variables = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
                 "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}  # fmt: skip
    script = ["bash", str(ROOT / "benchmarks" / "paper.sh"), *chosen]
    named = {"env": variables, "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run(script, check=False, **named)
    assert (done.returncode, done.stderr.count("failed:")) == (0, 0), done.stderr
    for run, size in (("leval-plain", 1), ("leval-selfextend-8k", 5)):
        rows = (tmp_path / "runs/paper/phi-2" / run / "rows.jsonl").read_text().splitlines()
        assert len(rows) == 2
        for row in map(json.loads, rows):
            assert row["status"] == "answered"
            assert row["settings"].get("group_size", 1) == size
    table = (tmp_path / "runs/paper/phi-2.md").read_text()
    assert "not run" not in table
    assert table.count("| leval/quality | ") == 2


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path):
    done = shell(tmp_path, "MODELS=phi-2", "TASKS=leval,longbench/qasper", "OUT=here")
    assert [x.rpartition("/")[2].split()[0] for x in called(tmp_path)] == [
        "longbench-plain", "longbench-selfextend-8k", "leval-plain", "leval-selfextend-8k",
    ]  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("leval-plain") == 1
    assert "leval-selfextend-8k" not in done.stderr
    assert "| longbench/qasper | 12.10 | not run |" in (tmp_path / "here/phi-2.md").read_text()
    assert "longbench/hotpotqa" not in done.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("MODELS=gpt", "no model 'gpt'"),
        ("TASKS=longbench/qas", "no task 'longbench/qas'"),
        ("LIMIT=0", "LIMIT must be a number"),
        ("TFLOPS=fast", "TFLOPS must be a positive number"),
        ("MODEL=phi-2", "no variable of this script"),
    ],
)
def test_what_is_misspelt_is_refused_before_anything_runs(argument, message, tmp_path):
    done = shell(tmp_path, argument)
    assert done.returncode != 0
    assert message in done.stderr
    assert called(tmp_path) == []


def test_tasks_and_lengths_of_answers_are_those_of_the_suite():
    known = {task.name for task in all_tasks(Source(), SyntheticOptions((64,), 1, 0, 1))}
    assert {task for _, run in RUNS for task in run["scores"]} <= known
    for task, facts in FILE["questions"]["tasks"].items():
        benchmark, _, name = task.partition("/")
        own = {"longbench": longbench.MAX_NEW_TOKENS.get(name), "leval": leval.MAX_NEW_TOKENS}
        assert facts["answer_tokens"] == own[benchmark], task


@EACH_RUN
def test_printed_means_are_those_of_their_columns(name, run):
    """A figure that was copied wrongly shows here."""
    assert run["source"]
    if "mean" in run:
        mean = sum(run["scores"].values()) / len(run["scores"])
        assert mean == pytest.approx(run["mean"], abs=0.0101)  # some were cut, not rounded


@EACH_RUN
def test_settings_reach_prompts_of_the_length_that_they_are_cut_to(name, run):
    """With the longest answer and 100 tokens of question and template."""
    if "cut_tokens" not in run:
        return
    answer = max(FILE["questions"]["tasks"][task]["answer_tokens"] for task in run["scores"])
    group, window = run["group_size"], run["neighbor_window"]
    planner = ContextBudgetPlanner(
        FILE["models"][name]["pretraining_window"],
        group_size=group,
        neighbor_window=window,
        extension="always",
    )
    assert planner.plan(run["cut_tokens"] + 100, answer).settings == SelfExtend(group, window)


def summary(folder, scores, refused=0, task="longbench/qasper", column=None):
    column = column or Column("selfextend", "cut")
    made = Task(name=task, metric="f1", items=lambda tokens: iter(()), score=lambda *given: {})
    results = Results([made])
    common = {"task": task, "question": "0", "method": column.method, "input": column.input}
    common |= {"fingerprint": "f", "of": 1}
    rows = [
        Row(**common, item=str(i), status="answered", scores={"score": x})
        for i, x in enumerate(scores)
    ]
    rows += [Row(**common, item=f"r{i}", status="refused") for i in range(refused)]
    results.add(results.tasks[0], column, rows)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary_of(results)))
    return results


def test_the_script_of_base_models_runs_commands_that_the_program_takes(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(tmp_path / "calls"))}\n')
    python.chmod(0o755)
    script = str(ROOT / "benchmarks" / "gemma.sh")
    given = ["DATA=records", "MODEL=m", f"PYTHON={python}", "LINES=7"]
    done = subprocess.run(["bash", script, *given], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *runs, table = [line.split() for line in called(tmp_path)]
    program = typer.main.get_command(app).commands["eval"]
    known = {task.name for task in all_tasks(Source(None), SyntheticOptions())}
    limits = []
    for words in runs:
        assert words[:2] == ["-m", "selfextend_rag.evals"]
        params = program.make_context("eval", words[2:]).params
        assert {*params["tasks"]} <= known
        limits.append(params["limit"])
    assert limits == [5, 7, 1]
    assert table[0].endswith("eval_table.py")
    wrong = subprocess.run(["bash", script, "DATAS=x"], capture_output=True, text=True)
    assert wrong.returncode == 2


def choice(out, **more):
    return PAPER["Choice"](models=("phi-2",), out=str(out), **more)


def test_the_table_has_published_and_measured_figures_side_by_side(tmp_path):
    summary(tmp_path / "phi-2" / "longbench-selfextend-8k", [10.0, 20.0, 30.0], refused=2)
    shown = PAPER["table"]("phi-2", choice(tmp_path, tasks=("longbench/qasper", "longbench/trec")))
    assert "| longbench/qasper | 12.10 | 20.00 |  | +7.90 | 3, 2 left out |" in shown
    assert "| longbench/qasper | 7.01 | not run | | | |" in shown  # plain attention
    assert "| mean of 2 | 36.55 | not all measured | | | |" in shown
    assert "longbench/hotpotqa" not in shown


def test_the_table_says_where_nothing_was_answered_and_how_sure_it_is(tmp_path):
    folder = tmp_path / "phi-2"
    summary(folder / "longbench-plain", [], refused=1, column=Column("plain", "cut"))
    results = summary(folder / "longbench-selfextend-8k", [0.0, 10.0, 20.0, 30.0, 40.0, 50.0])
    shown = PAPER["table"]("phi-2", choice(tmp_path, tasks=("longbench/qasper",)))
    assert "| longbench/qasper | 7.01 | none | | | 0, 1 left out |" in shown
    figures = summary_of(results)["tasks"]["longbench/qasper"]["columns"]["selfextend (cut)"]
    low, high = figures["interval"]
    assert f"| 25.00 | {low:.1f} to {high:.1f} | +12.90 | 6 |" in shown


def test_the_mean_of_all_tasks_is_compared_once_all_were_measured(tmp_path):
    folder = tmp_path / "phi-2" / "longbench-selfextend-8k"
    summary(folder, [20.0])
    one = json.loads((folder / "summary.json").read_text())
    one["tasks"]["longbench/trec"] = one["tasks"]["longbench/qasper"]
    (folder / "summary.json").write_text(json.dumps(one))
    shown = PAPER["table"]("phi-2", choice(tmp_path, tasks=("longbench/qasper", "longbench/trec")))
    assert "| mean of 2 | 36.55 | 20.00 | | -16.55 | |" in shown


def test_the_cost_is_what_tokens_and_speed_make_it(tmp_path):
    """Qasper by Phi-2, by hand: 200 documents of 3,619 words at 1.5 tokens a word."""
    tasks = ("longbench/qasper",)
    found = PAPER["cost"]("phi-2", choice(tmp_path, tasks=tasks, tflops=100, milliseconds=10))
    operations = 0
    for tokens in (2048, 3619 * 1.5):  # plain attention is cut to its window
        operations += 200 * (2 * 2.78e9 * tokens + 2 * 32 * 2560 * tokens**2)
    assert found.reading_hours == pytest.approx(operations / 100e12 / 3600)
    assert found.answering_hours == pytest.approx(2 * 200 * 128 * 0.01 / 3600)
    cache = 7500 * 32 * 32 * 80 * 2 * 3  # layers, heads, their size, bytes, keys twice and values
    assert found.gib == pytest.approx((2 * 2.78e9 + cache) / 2**30 + 4)
    fewer = PAPER["cost"]("phi-2", choice(tmp_path, tasks=tasks, limit=50))
    assert fewer.answering_hours == pytest.approx(2 * 50 * 128 * 0.016 / 3600)
