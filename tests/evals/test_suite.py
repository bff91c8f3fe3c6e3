"""The runner: rows that outlive a crash, the same summary however often a run was broken off."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from selfextend_rag.cli import main
from selfextend_rag.corpus.lines import ResultsError
from selfextend_rag.errors import (
    ContextBudgetExceeded,
    DocumentError,
    MemoryBudgetExceeded,
    UnsupportedModelError,
)
from selfextend_rag.evals import methods
from selfextend_rag.evals.benchmarks import BenchmarkError, Item, Question, Task
from selfextend_rag.evals.methods import (
    Answered,
    LoadedModel,
    MethodError,
    MethodOptions,
)
from selfextend_rag.evals.metrics import perplexity
from selfextend_rag.evals.suite.bootstrap import interval
from selfextend_rag.evals.suite.report import page
from selfextend_rag.evals.suite.rows import Column, RowFile
from selfextend_rag.evals.suite.run import SuiteOptions, run_suite
from selfextend_rag.evals.suite.summary import summary_of, table
from tests.tiny import byte_tokenizer, tiny_llama


class Fake:
    """Answers with a number that depends on the question, and counts what it was asked."""

    def __init__(self, name, right, inputs=("whole",), error=None):
        self.name, self.inputs, self.right, self.error = name, inputs, right, error
        self.asked = 0

    def identity(self):
        return {"right": self.right}

    def answers(self, item):
        self.asked += 1
        if self.error:
            raise self.error
        return [
            Answered(str(self.right(int(item.id), int(question.id))), "stop", 9, 1, 0.1, 0.2)
            for question in item.questions
        ]

    def predicted(self, item):
        raise MethodError("it predicts nothing")


class Loaded:
    name, window, fingerprint = "fake", 64, "f"

    def encode(self, text):
        return list(text)

    def decode(self, tokens):
        return "".join(tokens)


def item(number, questions=3, length=10):
    asked = tuple(Question(str(q), f" {q}?", {"answer": "1"}, 4) for q in range(questions))
    groups = {"depth": number % 2}
    return Item(str(number), "", "x" * length, asked, groups=groups)


def task(count=6, cut=None, length=10, questions=3, name="fake/one", **more):
    def score(question, text):
        return {"score": 100.0 * (text == question.gold["answer"])}

    def items(tokens):
        return (item(number, questions, length) for number in range(count))

    return Task(name=name, metric="exact", items=items, score=score, cut=cut, **more)


def run(folder, *used, tasks=None, **options):
    with RowFile(folder) as file:
        tasks = tasks or [task()]
        return run_suite(tasks, used, Loaded(), file, SuiteOptions(**options))


def sometimes(number, question):
    return int((number + question) % 3 > 0)


def always(number, question):
    return 1


def test_a_second_run_computes_nothing_and_says_the_same(tmp_path):
    first, second = Fake("plain", sometimes), Fake("plain", sometimes)
    one = run(tmp_path, first)
    two = run(tmp_path, second)
    assert (one.computed, one.found, first.asked) == (18, 0, 6)
    assert (two.computed, two.found, second.asked) == (0, 18, 0)
    assert summary_of(one) == summary_of(two)


def test_a_file_broken_off_anywhere_gives_the_same_summary(tmp_path):
    """At every byte; items of which a question is missing are asked again as a whole."""
    small = [task(2, questions=2)]
    expected = summary_of(run(tmp_path / "whole", Fake("plain", sometimes), tasks=small))
    data = (tmp_path / "whole" / "rows.jsonl").read_bytes()
    broken = tmp_path / "broken"
    broken.mkdir()
    for length in [*range(0, len(data), 7), len(data) - 1, len(data)]:
        (broken / "rows.jsonl").write_bytes(data[:length])
        found = run(broken, Fake("plain", sometimes), tasks=small)
        assert summary_of(found) == expected
        assert found.computed in (0, 2, 4)


def test_rows_of_other_settings_prompts_or_golds_are_not_taken(tmp_path):
    run(tmp_path, Fake("plain", sometimes))
    assert run(tmp_path, Fake("plain", always)).computed == 18
    assert run(tmp_path, Fake("plain", always), tasks=[task(length=11)]).computed == 18
    assert run(tmp_path, Fake("plain", always)).computed == 0


@pytest.mark.parametrize(
    ("of", "change"),
    [
        ("question", {"answer": "2"}),  # whose likelihood is measured
        ("question", {"evidence": ("2",)}),  # what an oracle reads
        ("question", {"query": "2"}),  # what retrieval looks for
        ("question", {"max_new_tokens": 5}),
        ("item", {"groups": {"depth": 7}}),  # what results are broken down by
        ("item", {"chat": False}),
    ],
)
def test_rows_of_an_item_that_differs_in_anything_are_not_taken(tmp_path, of, change):
    first = item(0, questions=1)
    if of == "item":
        other = replace(first, **change)
    else:
        other = replace(first, questions=(replace(first.questions[0], **change),))
    for given in (first, other):
        tasks = [replace(task(), items=lambda tokens, given=given: iter([given]))]
        assert run(tmp_path, Fake("plain", always), tasks=tasks).computed == 1


def test_two_items_of_one_id_are_refused(tmp_path):
    """They would be one document in intervals, and one row on a second run if they were equal."""
    twice = replace(task(), items=lambda tokens: iter([item(0), item(0, length=11)]))
    with pytest.raises(BenchmarkError, match="two items of the id '0'"):
        run(tmp_path, Fake("plain", always), tasks=[twice])


@pytest.mark.parametrize("error", [KeyError("answers"), ValueError("odd"), ZeroDivisionError()])
def test_a_gold_that_can_not_be_scored_is_named_before_anything_is_answered(tmp_path, error):
    """Answers were computed first, and lost by each run that came to them."""

    def score(question, text):
        raise error

    method = Fake("plain", always)
    with pytest.raises(BenchmarkError, match="fake/one, item 0, question 0: can't be scored by"):
        run(tmp_path, method, tasks=[replace(task(), score=score)])
    assert method.asked == 0


def test_answers_are_no_longer_than_asked_for_and_kept_apart_from_longer_ones(tmp_path):
    class Long(Fake):
        def answers(self, item):
            assert [x.max_new_tokens for x in item.questions] == [self.expected] * 3
            return super().answers(item)

    for expected, most in ((2, 2), (4, 9), (4, None)):
        method = Long("plain", sometimes)
        method.expected = expected
        results = run(tmp_path, method, answer_tokens=most)
        assert method.asked == (0 if most is None else 6)  # 9 is more than the benchmark's 4
        assert results.computed + results.found == 18


def test_a_limit_can_be_raised_later(tmp_path):
    assert run(tmp_path, Fake("plain", always), limit=2).computed == 6
    found = run(tmp_path, Fake("plain", always), limit=4)
    assert (found.computed, found.found) == (6, 6)


def test_a_line_that_is_no_row_is_an_error_unless_it_is_the_last(tmp_path):
    run(tmp_path, Fake("plain", always))
    path = tmp_path / "rows.jsonl"
    path.write_text("{torn\n" + path.read_text())
    with pytest.raises(ResultsError, match="line 1, is no row"):
        RowFile(tmp_path)


def test_two_processes_do_not_write_at_once(tmp_path):
    with RowFile(tmp_path), pytest.raises(ResultsError, match="another process"):
        RowFile(tmp_path)
    RowFile(tmp_path).__exit__(None, None, None)


@pytest.mark.parametrize(
    "error",
    [
        ContextBudgetExceeded("too long", needed=2, available=1),
        DocumentError("the document has no text"),
    ],
)
def test_what_a_method_can_not_do_is_counted_and_said(tmp_path, error):
    refusing = Fake("selfextend", always, error=error)
    results = run(tmp_path, Fake("plain", always), refusing)
    figures = summary_of(results)["tasks"]["fake/one"]["columns"]
    assert figures["plain"]["answered"] == figures["selfextend"]["refused"] == 18
    assert "score" not in figures["selfextend"]
    assert "18 left out" in table(summary_of(results))
    assert run(tmp_path, refusing).computed == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryBudgetExceeded(
            "none", device="cpu", needed_bytes=2, available_bytes=1, needed=2, available=1
        ),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_a_lack_of_memory_ends_no_run_and_is_not_kept(tmp_path, error):
    refusing = Fake("plain", always, error=error)
    results = run(tmp_path, refusing, Fake("selfextend", always))
    figures = summary_of(results)["tasks"]["fake/one"]["columns"]
    assert (figures["plain"]["refused"], figures["selfextend"]["answered"]) == (18, 18)
    assert run(tmp_path, refusing).computed == 0
    assert run(tmp_path, Fake("plain", always)).computed == 18


def test_prompts_are_given_cut_and_whole_and_run_once_where_that_is_the_same(tmp_path):
    long, short = task(2, "tail", 500, name="a/long"), task(2, "tail", 10, name="a/short")
    method = Fake("plain", always, inputs=("cut", "whole"))
    results = run(tmp_path, method, tasks=[long, short], cut_tokens=50)
    assert method.asked == 4 + 2
    forms = {row.input for row in results.rows["a/short", Column("plain", "cut")]}
    assert forms == {"whole"}
    cut = summary_of(results)["tasks"]["a/long"]["columns"]["plain (cut)"]
    assert cut["cut_tokens"] == 450
    skipped = run(tmp_path, method, tasks=[task(2, "skip", 500, name="a/skip")], cut_tokens=50)
    figures = summary_of(skipped)["tasks"]["a/skip"]["columns"]
    assert (figures["plain (cut)"]["skipped"], figures["plain"]["answered"]) == (6, 6)


def test_differences_are_of_the_same_items(tmp_path):
    results = run(tmp_path, Fake("plain", sometimes), Fake("selfextend", always))
    (found,) = summary_of(results)["tasks"]["fake/one"]["differences"]
    assert (found["column"], found["over"], found["items"]) == ("selfextend", "plain", 6)
    assert found["difference"] == pytest.approx(100 - 200 / 3)
    low, high = found["interval"]
    assert low == pytest.approx(high) == pytest.approx(found["difference"])  # each item: 2 of 3


def test_means_are_of_tasks_that_belong_together(tmp_path):
    names = ("ruler/vt/64", "ruler/cwe/64", "ruler/vt/128", "kv/75/as_given", "kv/75/gold_at_0")
    tasks = [task(2, name=name) for name in names]
    results = run(tmp_path, Fake("plain", sometimes), tasks=tasks)
    averages = summary_of(results)["averages"]
    assert [(name, found["tasks"]) for name, found in averages.items()] == [("ruler at 64", 2)]
    assert averages["ruler at 64"]["columns"] == {"plain": pytest.approx(200 / 3)}


class Noisy(Fake):
    """Is right or wrong by a draw of its own for every question of every task."""

    def answers(self, item):
        drawn = random.Random(f"{self.name} {item.id} {item.document}")
        return [replace(x, text=str(drawn.randrange(2))) for x in super().answers(item)]


def test_means_over_tasks_have_intervals_and_differences_of_their_own(tmp_path):
    """Tasks are independent: four of them have half the standard error of one."""
    tasks = [task(50, name=f"longbench/{n}", questions=1, length=10 + n) for n in range(4)]
    plain, other = (Noisy(name, always) for name in ("plain", "selfextend"))
    summary = summary_of(run(tmp_path, plain, other, tasks=tasks))
    mean = summary["averages"]["longbench"]
    scores = [x["columns"]["plain"]["score"] for x in summary["tasks"].values()]
    low, high = mean["intervals"]["plain"]
    assert mean["columns"]["plain"] == pytest.approx(sum(scores) / 4)
    assert low < mean["columns"]["plain"] < high
    assert high - low == pytest.approx(2 * 1.96 * 50 / 200**0.5, rel=0.15)
    (found,) = mean["differences"]
    one, two = mean["columns"]["selfextend"], mean["columns"]["plain"]
    assert (found["items"], found["difference"]) == (200, pytest.approx(one - two))
    low, high = found["interval"]
    assert low < found["difference"] < high
    assert high - low == pytest.approx(2 * 1.96 * 50 * (2 / 200) ** 0.5, rel=0.15)


def test_means_say_how_many_answers_they_lack(tmp_path):
    class Half(Fake):
        def answers(self, item):
            if item.id == "0":
                raise MethodError("not this")
            return super().answers(item)

    tasks = [task(3, name=f"longbench/{n}", length=n) for n in range(2)]
    results = run(tmp_path, Fake("plain", always), Half("bm25", always), tasks=tasks)
    summary = summary_of(results)
    assert summary["averages"]["longbench"]["left_out"] == {"plain": 0, "bm25": 6}
    assert table(summary).splitlines()[-1].endswith("(6 left out)")
    assert "6 left out" in page(results, summary, {"model": "m"}, plot=False)


def test_intervals_are_of_items_and_hold_the_mean():
    """Two questions of one document move together, so they count as one draw."""

    def mean(rows):
        return sum(row["score"] for row in rows) / len(rows)

    apart = {str(n): [{"score": float(n % 2)}] for n in range(40)}
    together = {str(n): [{"score": float(n % 2)}] * 2 for n in range(20)}
    narrow, wide = interval(apart, mean), interval(together, mean)
    assert narrow[0] < 0.5 < narrow[1]
    assert wide[1] - wide[0] > (narrow[1] - narrow[0]) * 1.2
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.15)
    few = {str(n): [{"score": 1.0}] for n in range(4)}
    assert interval(few, mean) is None


class Measured(Fake):
    """Finds the right answer of so many nats, and wrong ones of 1 and 3."""

    def answers(self, item):
        return [
            replace(answer, gold_nlls=(answer_nll / 2,) * 2, other_nlls=((1.0,), (2.0, 1.0)))
            for answer, question in zip(super().answers(item), item.questions, strict=True)
            for answer_nll in [self.right(int(item.id), int(question.id))]
        ]


def test_right_answers_are_compared_with_wrong_ones_and_between_methods(tmp_path):
    plain = Measured("plain", lambda number, question: 2.0)
    extended = Measured("selfextend", lambda number, question: 0.5 if number else 2.0)
    task = summary_of(run(tmp_path, plain, extended))["tasks"]["fake/one"]
    assert [task["columns"][name]["likeliest"] for name in ("plain", "selfextend")] == [
        0,
        pytest.approx(500 / 6),  # in five of six documents
    ]
    assert task["columns"]["plain"]["by_chance"] == pytest.approx(100 / 3)
    (found,) = task["differences"]
    assert found["gold_nll"]["difference"] == pytest.approx(-0.75 * 5 / 6)  # nats a token of two
    assert found["gold_nll"]["interval"][1] < 0
    assert found["likeliest"]["difference"] == pytest.approx(500 / 6)


def test_a_figure_that_one_column_lacks_is_not_compared(tmp_path):
    results = run(tmp_path, Fake("plain", always), Measured("selfextend", always))
    summary = summary_of(results)
    (found,) = summary["tasks"]["fake/one"]["differences"]
    assert "gold_nll" not in found
    text = page(results, summary, {"model": "m"}, plot=False)
    assert text.count("selfextend minus plain") == 1


def test_the_report_is_one_page_that_loads_nothing(tmp_path):
    results = run(tmp_path, Fake("plain", sometimes), Fake("selfextend", always))
    summary = summary_of(results)
    text = page(results, summary, {"model": "<b>&"}, plot=False)
    assert "http" not in text
    assert "&lt;b&gt;&amp;" in text
    assert "selfextend minus plain" in text
    assert "by depth" in text


def test_pictures_are_in_the_page(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is optional and not installed")
    results = run(tmp_path, Fake("plain", sometimes))
    text = page(results, summary_of(results), {"model": "m"}, plot=True)
    assert text.count("data:image/png;base64,") == 2
    assert 'src="http' not in text
    measured = run(tmp_path / "measured", Measured("plain", always))
    text = page(measured, summary_of(measured), {"model": "m"}, plot=True)
    assert text.count("data:image/png;base64,") == 3  # likelihoods, too
    assert "<small>answer: 1</small>" in text


def test_methods_are_added_by_name(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    methods.register("fake", lambda loaded, options: Fake("fake", always))
    (found,) = methods.methods_of(["fake"], Loaded(), MethodOptions())
    assert found.name == "fake"
    for name in ("plain", "a,b", " a", ""):
        with pytest.raises(MethodError, match="can't add"):
            methods.register(name, None)
    for names in (["none"], [], ["plain", "plain"]):
        with pytest.raises(MethodError, match=r"no method|once"):
            methods.methods_of(names, Loaded(), MethodOptions())


# By a real model, from here on.


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(window=128, dtype=torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """Two documents with three questions each, in the layout of L-Eval; and a book."""
    folder = tmp_path / "data"
    (folder / "LEval-data/Closed-ended-tasks").mkdir(parents=True)
    record = {
        "input": "The tower is red. " * 12,
        "instructions": ["Which colour?", "Which (A) one (B)?", "Why?"],
        "outputs": ["A", "B", "A"],
        "evaluation": "exam",
    }
    other = {**record, "input": "The river is slow and wide. " * 9}
    text = "".join(f"{json.dumps(x)}\n" for x in (record, other))
    (folder / "LEval-data/Closed-ended-tasks/tpo.jsonl").write_text(text)
    (folder / "test").mkdir()
    (folder / "test/1.txt").write_text("In the beginning was the word, and so on and on. " * 9)
    return folder


def options(model_folder, data, out):
    shared = f"--data {data} --model {model_folder} --out {out} --lengths 300 --no-plot"
    return ["eval", "leval/tpo", "pg19", *shared.split()]


def shortened(monkeypatch):
    from selfextend_rag.evals.benchmarks import leval

    monkeypatch.setattr(leval, "MAX_NEW_TOKENS", 8)


def test_the_command_runs_twice_and_the_model_once(
    model_folder, data, tmp_path, monkeypatch, capsys
):
    shortened(monkeypatch)
    forwards = []
    plain = LlamaCounter(forwards)
    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", plain.wrapped)
    arguments = options(model_folder, data, tmp_path / "out")
    assert main(arguments) == 0
    first, used = (tmp_path / "out/summary.json").read_text(), len(forwards)
    out, err = capsys.readouterr()
    assert "leval/tpo" in out
    assert "20 rows computed, 0 found" in err  # 2 documents x 3 questions x 3 columns, and a book
    assert main(arguments) == 0
    assert (tmp_path / "out/summary.json").read_text() == first
    assert len(forwards) == used
    assert "0 rows computed, 20 found" in capsys.readouterr().err
    assert (json.loads(first)["dtype"], json.loads(first)["device"]) == ("torch.float32", "cpu")
    figures = json.loads(first)["tasks"]
    assert figures["leval/tpo"]["columns"]["selfextend"]["group_sizes"] != [1]
    assert figures["leval/tpo"]["columns"]["plain"]["answered"] == 6
    assert figures["pg19/300"]["columns"]["plain"]["word_perplexity"] > 1


class LlamaCounter:
    def __init__(self, forwards):
        plain = LlamaForCausalLM.forward

        def forward(model, *given, **named):
            if model.device.type != "meta":  # where memory is looked at
                forwards.append(1)
            return plain(model, *given, **named)

        self.wrapped = functools.wraps(plain)(forward)


def test_rows_say_what_the_product_answers(model_folder, data, tmp_path, monkeypatch):
    """The same model, asked by itself with the same prompt, gives the text of the row."""
    shortened(monkeypatch)
    assert main([*options(model_folder, data, tmp_path / "out"), "--methods", "plain"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").open()]
    row = next(row for row in rows if (row["input"], row["question"]) == ("cut", "1"))
    assert row["cut_tokens"] > 0
    whole = next(row for row in rows if (row["input"], row["question"]) == ("whole", "1"))
    assert whole["prompt_tokens"] - row["prompt_tokens"] == row["cut_tokens"]
    assert whole["seconds"] > 0


def test_json_is_one_object_and_names_what_is_left_out(
    model_folder, data, tmp_path, monkeypatch, capsys
):
    shortened(monkeypatch)
    arguments = options(model_folder, data, tmp_path / "out")
    arguments[1:3] = ["leval", "--json", "--limit", "1"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["left_out"]) == 19
    assert "leval/coursera" in found["left_out"]
    assert found["computed"] == 9
    assert found["summary"]["tasks"]["leval/tpo"]["columns"]["plain"]["answered"] == 3


def test_right_answers_are_measured_on_request(model_folder, data, tmp_path, monkeypatch):
    shortened(monkeypatch)
    arguments = options(model_folder, data, tmp_path / "out")
    arguments = [arguments[0], arguments[1], *arguments[3:], "--methods", "selfextend"]
    assert main(arguments) == 0
    assert main([*arguments, "--likelihood"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").open()]
    assert len(rows) == 12
    without, measured = rows[0], rows[6]
    assert without["text"] == measured["text"]
    assert "gold_nll" not in without["scores"]
    assert measured["scores"]["gold_tokens"] == 2  # " A", after "Answer:"
    figures = json.loads((tmp_path / "out/summary.json").read_text())["tasks"]["leval/tpo"]
    found = figures["columns"]["selfextend"]["gold_nll"]
    nlls = [row["scores"]["gold_nll"] for row in rows[6:]]
    assert found == pytest.approx(sum(nlls) / 12)


def test_a_book_is_predicted_as_by_the_models_own_loss(model_folder, data, tmp_path):
    arguments = options(model_folder, data, tmp_path / "out")
    assert main([arguments[0], *arguments[2:], "--methods", "plain"]) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    model, tokenizer = tiny_llama(window=128, dtype=torch.float32), byte_tokenizer()
    text = (data / "test/1.txt").read_text()
    ids = [0, *tokenizer(text, add_special_tokens=False)["input_ids"]][:300]
    loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    figures = summary["tasks"]["pg19/300"]["columns"]["plain"]
    assert figures["score"] == pytest.approx(perplexity([loss]), rel=1e-5)
    words = len(tokenizer.decode(ids, skip_special_tokens=True).split())
    assert figures["word_perplexity"] == pytest.approx(perplexity([loss * 299 / words]), rel=1e-5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--methods", "magic"], "no method 'magic'"),
        (["--inputs", "half"], "--inputs takes whole and cut"),
        (["--limit", "0"], "--limit must be"),
        (["--samples", "0"], "--samples must be"),
        (["--cut-tokens", "1"], "--cut-tokens must be"),
        (["--lengths", "0"], "lengths must be"),
        (["magic"], "'magic' is no task"),
    ],
)
def test_what_can_not_be_run_is_one_line(model_folder, data, tmp_path, more, said, capsys):
    assert main([*options(model_folder, data, tmp_path / "out"), *more]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_run_that_is_killed_twice_gives_the_summary_of_one_that_is_not(
    model_folder, data, tmp_path
):
    command = [sys.executable, "-m", "selfextend_rag.evals"]
    whole, broken = (options(model_folder, data, tmp_path / x)[1:] for x in ("whole", "broken"))
    limited = ["--limit", "1", "--methods", "selfextend"]
    subprocess.run([*command, *whole, *limited], check=True, capture_output=True, timeout=500)
    rows = tmp_path / "broken/rows.jsonl"
    for least in (0, 1):
        process = subprocess.Popen(
            [*command, *broken, *limited], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (rows.exists() and rows.stat().st_size >= least):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, *broken, *limited], check=True, capture_output=True, timeout=500)
    first, second = ((tmp_path / x / "summary.json").read_text() for x in ("whole", "broken"))
    assert first == second


def test_offloaded_models_are_told_apart_by_their_files(model_folder, tmp_path, monkeypatch):
    """The name alone was looked at, so that a model trained on in its folder had the old rows."""

    def offloaded(*given):
        raise UnsupportedModelError("offloaded")

    monkeypatch.setattr("selfextend_rag.evals.methods.base.token_fingerprint", offloaded)
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)

    def fingerprint(window=0):
        model = tiny_llama(window=window or 128, dtype=torch.float32)
        return LoadedModel(str(folder), model, byte_tokenizer()).fingerprint

    first = fingerprint()
    assert fingerprint() == first != fingerprint(256)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert fingerprint() != first


def test_loaded_models_of_other_weights_have_other_fingerprints():
    tokenizer = byte_tokenizer()
    one, two = (LoadedModel("m", tiny_llama(seed=seed), tokenizer) for seed in (0, 1))
    again = LoadedModel("other name", tiny_llama(seed=0), tokenizer)
    assert one.fingerprint == again.fingerprint != two.fingerprint
