"""``selfextend-rag compare``: what is written where, and what is refused before any work."""

from __future__ import annotations

import json
import sys

import pytest

from selfextend_rag.cli.app import with_options
from selfextend_rag.llm import LongContextLLM


@pytest.fixture
def facts(tmp_path):
    path = tmp_path / "facts.md"
    path.write_text("".join(f"Fact {i} is {i * i % 97}. " for i in range(14)))
    return path


@pytest.fixture
def compared(run, model_folder):
    """Compare with passages that are small enough for the tiny model."""

    def call(*arguments):
        return run("compare", *arguments, "--model", model_folder, "--max-new-tokens", 4,
                   "--passage-words", 4, "--passages", 2)  # fmt: skip

    return call


def test_both_answers_and_the_recommendation_are_the_result(compared, model_folder, facts):
    code, out, err = compared(facts, "-q", "Fact 3?", "--gold", "9", "-q", "Fact 5?", "--gold", "")
    assert code == 0
    assert "SelfExtend with group_size" in err
    first, second, rest = out.split("\n\n")
    assert first.startswith("1. Fact 3?\n    right     9\n    whole     ")
    assert second.startswith("2. Fact 5?\n    whole     ")
    assert rest.startswith("No recommendation: 1 question with a right answer is too few.")
    llm = LongContextLLM.from_pretrained(model_folder)
    alone = llm.read(facts.read_text(), max_new_tokens=4).ask("Fact 3?").text
    assert f"    whole     {' '.join(alone.split()) or '(nothing)'} [" in first
    assert f"    brought   {facts}, line 1 (score " in first
    assert '"Fact 3 is 9."' in first


def test_json_has_all_that_is_known(compared, facts, model_folder):
    code, out, err = compared(facts, "-q", "Fact 3?", "--gold", "9", "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["model"] == model_folder
    assert values["documents"][0]["source"] == str(facts)
    assert values["recommendation"]["choice"] == "undecided"
    assert values["retrieval"] == {
        "retriever": "bm25", "passages": 2, "passage_words": 4, "of_passages": 14
    }  # fmt: skip
    (question,) = values["questions"]
    assert question["answers"] == ["9"]
    for side in ("whole", "retrieved"):
        assert isinstance(question[side]["right"], bool)
        assert question[side]["gold_nll"] > 0
        assert question[side]["seconds"] > 0
    assert question["passages"][0]["text"] == "Fact 3 is 9."
    assert values["whole"]["plan"]["extended"]
    assert values["whole"]["read_tokens"] == values["whole"]["plan"]["prompt_tokens"]


def test_documents_that_do_not_fit_are_exit_code_1_and_retrieval_is_shown(compared, facts):
    arguments = (facts, "-q", "Fact 3?", "--gold", "9", "--max-group-size", "2")
    code, out, _ = compared(*arguments)
    assert code == 1
    assert "    whole " not in out
    assert "    bm25      " in out
    assert "    brought   " in out
    assert "No comparison: the documents can't be read whole as they are." in out
    assert "exceeds the extended window of" in out
    assert "--max-group-size " in " ".join(out.split())
    assert compared(*arguments, "--json")[0] == 1


def test_questions_of_a_file_follow_those_that_were_typed(compared, facts, tmp_path):
    path = tmp_path / "asked.csv"
    path.write_text("question,answer\nFact 5?,25\n")
    code, out, _ = compared(facts, "-q", "Fact 3?", "--questions", path, "--json")
    assert code == 0
    asked = [(x["question"], x["answers"]) for x in json.loads(out)["questions"]]
    assert asked == [("Fact 3?", []), ("Fact 5?", ["25"])]


def test_the_report_is_one_page(compared, facts, tmp_path, model_folder):
    path = tmp_path / "report.html"
    code, _, err = compared(facts, "-q", "Fact 3?", "--output", path)
    assert code == 0
    assert f"Report: {path}" in err
    page = path.read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert f"<h1>Whole documents and retrieval: {model_folder}</h1>" in page


def test_what_documents_say_is_written_as_it_is(compared, tmp_path):
    """Options replace the arguments of Python that errors name, and nothing in a document."""
    path = tmp_path / "code.txt"
    path.write_text("open(encoding=latin1, seed=5). Other words are here.")
    code, out, _ = compared(path, "-q", "What is encoding=latin1?")
    assert code == 0
    assert "1. What is encoding=latin1?" in out
    assert '"open(encoding=latin1, seed=5).' in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is no question; give some by -q, or a file of them by --questions"),
        (["-q", "a", "-q", "b", "--gold", "c"], "--gold is given 1 times and -q 2 times"),
        (["-q", " "], "a question is empty"),
        (["-q", "a", "--gold", "?"], "has no word or number"),
        (["-q", "a", "--passages", "0"], "--passages must be positive, got 0"),
        (["-q", "a", "--retriever", "embeddings"], "needs embeddings to take"),
        (["--questions", "none.csv"], "can't read the questions in none.csv"),
        (["-q", "a", "-o", "none/report.html"], "there is no folder none"),
    ],
)
def test_what_can_not_be_done_is_refused_before_a_model_is_loaded(
    run, facts, monkeypatch, tmp_path, arguments, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LongContextLLM, "from_pretrained", None)
    code, out, err = run("compare", facts, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_without_its_library_bm25_is_refused_before_a_model_is_loaded(run, facts, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    monkeypatch.setattr(LongContextLLM, "from_pretrained", None)
    code, out, err = run("compare", facts, "-q", "a")
    assert (code, out) == (2, "")
    assert 'pip install "selfextend-rag[evals]"' in err


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("allow 14 by max_group_size=14 (far", "allow 14 by --max-group-size 14 (far"),
        ("by kv_bits=8, or", "by --kv-bits 8, or"),
        ("pass ocr=True to read", "pass --ocr to read"),
        ("without strict=.", "without --strict."),
    ],
)
def test_options_in_errors_are_as_they_are_typed(said, written):
    """``max_group_size=14`` became ``--max-group-size14``."""
    assert with_options(said) == written
