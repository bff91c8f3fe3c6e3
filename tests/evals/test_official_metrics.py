"""Metrics that benchmarks define: their rules, one by one, and the check of official scores.

The expected scores were computed with the benchmarks' own programs.
"""

import json
import sys
from pathlib import Path

import pytest

from selfextend_rag.cli import main
from selfextend_rag.evals.metrics import infinitebench, leval, longbench, retrieval, words
from selfextend_rag.evals.metrics.check import check_metrics

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "metric_cases.json"

for library in ("rouge", "rouge_score", "jieba"):
    pytest.importorskip(library, reason="comes with the extra evals")


def test_rouge_l_of_longbench_counts_sets_of_words():
    """As PyPI's rouge 1.0.1 does: repeats count once, sentences in any order, case matters."""
    assert longbench.rouge_l("word word word word", "word") == pytest.approx(1, abs=1e-6)
    assert longbench.rouge_l("two. one.", "one. two.") == pytest.approx(1, abs=1e-6)
    assert longbench.rouge_l("Word", "word") == 0
    assert longbench.rouge_l("...", "word") == longbench.rouge_l("word", "") == 0


def test_rouge_of_a_very_long_sentence_is_zero_whatever_calls_it():
    """The library's recursion ends there, which LongBench scores 0; our stack must not decide."""
    text = " ".join(f"w{i}" for i in range(960))

    def nested(depth):
        return nested(depth - 1) if depth else longbench.rouge_l(text, text)

    limit = sys.getrecursionlimit()
    assert nested(0) == nested(300 if limit >= 1000 else 0) == pytest.approx(1, abs=1e-6)
    longer = " ".join(f"w{i}" for i in range(1200))
    assert longbench.rouge_l(longer, longer) == 0


def test_an_error_of_the_library_is_no_score_of_zero(monkeypatch):
    """It was lost in the thread that the score is computed in."""
    import rouge

    def broken(*given, **named):
        raise RuntimeError("broken")

    monkeypatch.setattr(rouge.Rouge, "get_scores", broken)
    with pytest.raises(RuntimeError, match="broken"):
        longbench.rouge_l("a cat", "a cat")


def test_rouge_of_leval_is_another_metric():
    scores = leval.rouge("word word", "word")
    assert scores["rouge1"] == pytest.approx(200 / 3)
    assert scores["geometric_mean"] == 0  # no pair of words in common
    assert leval.rouge("The cat sat", "the CAT sat!")["geometric_mean"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("said", "gold", "score"),
    [
        ("Number, Other number, City", "Number", 1 / 3),
        ("City or Entity", "City", 0.5),
        ("city", "City", 0),
        ("Other number", "Number", 0),
    ],
)
def test_dropping_classes_skips_the_one_after_each(said, gold, score):
    names = ["Abbreviation", "Entity", "Entity type", "Number", "Other number", "City"]
    assert longbench.classification(said, gold, names) == pytest.approx(score)


def test_a_class_that_follows_a_dropped_one_counts_although_it_is_part_of_the_gold():
    assert longbench.classification("ABC", "ABC", ["A", "B", "ABC"]) == 0.5
    assert longbench.classification("ABC", "ABC", ["A", "ABC"]) == 1


def test_code_is_compared_by_difflib_in_whole_per_cent():
    """python-Levenshtein gives 0.65 for the last; half per cents round to even."""
    assert longbench.code_similarity("return y", "return x") == 0.88
    assert longbench.code_similarity("# note\n`x`\nint a = 3;", "int a = 3;") == 1
    assert longbench.code_similarity("    return x", "return x") == 0.8
    assert longbench.code_similarity("x = abcdefgh + efghabcd", "x = efghabcd + abcdefgh") == 0.52


def test_the_first_line_is_scored_in_four_tasks_alone():
    assert longbench.score("triviaqa", "\nParis\nRome", ["Rome"]) == 0
    assert longbench.score("hotpotqa", "Paris\nRome", ["Rome"]) == pytest.approx(2 / 3)
    assert longbench.score("trec", "City\nNumber", ["City"], ["City", "Number"]) == 1


def test_the_21_tasks_of_longbench_have_a_metric():
    assert len(longbench.METRICS) + len(longbench.CLASSIFIED) == 21
    with pytest.raises(ValueError, match="no task of LongBench"):
        longbench.score("coursera", "a", ["a"])


def test_chinese_words_are_jiebas_and_widths_differ():
    assert longbench.qa_f1_zh("厦门大学", "福建省厦门大学") == pytest.approx(2 / 3)
    assert longbench.qa_f1_zh("ＧＰＵ", "GPU") == 0
    assert longbench.rouge_l_zh("预算 通过", "预算通过") == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("answer", "several", "letters"),
    [
        ("Answer: C", False, "A"),
        ("no letter", False, "A"),
        ("", False, "None"),
        ("BC", False, "BC"),  # part of "ABCD", and taken as it is
        ("CA", False, "C"),
        ("CA", True, "AC"),
        ("A,B", True, "A"),
        ("A. one B. two", True, "AB"),
        ("see C) Question: D.", True, "C"),
        ("it is DCx", True, "DC"),
    ],
)
def test_letters_are_read_as_leval_reads_them(answer, several, letters):
    assert leval.chosen_letters(answer, several=several) == letters


def test_exact_match_of_leval_is_none():
    assert leval.exact_match("A", "AB") == 0.25
    assert leval.exact_match("", "AB") == 0.25  # why an empty answer is read as "None"
    assert leval.exact_match("1e3", "1000") == 1
    assert leval.exact_match("in the benefits of  yoga", "Benefits of yoga") == 1
    assert leval.exam("gsm100", "The answer is $1,200.50", "The answer is 1200") == 100
    assert leval.exam("codeU", "This is [1, 2, 3]", "[1,2,3]") == 100


def test_judgements_are_found_within_words():
    assert leval.judgement("untrue [fact: I say false]", "True [fact: False]") == (100, 100)
    assert leval.judgement("unsure", "True [fact: False]") == (0, 0)


def test_lookups_accept_what_their_programs_accept():
    assert retrieval.best_subspan_em("London\nParis", ["Paris"]) == 0
    assert retrieval.best_subspan_em("anything", ["the"]) == 1
    assert retrieval.holds_value("x\nABC-19", "abc-1") == 1
    assert retrieval.word_is_value("abc-19", "abc-1") == 0
    assert retrieval.last_number("line 7: 02416", 2416) == 1
    assert retrieval.last_number("2416 in line 7", 2416) == 0
    assert retrieval.first_number("1. 71432", "71432") == 0
    assert retrieval.string_match_all("only 22", ["11", "22"]) == 0.5
    assert retrieval.only_label("kitchen or office", "office", "Where?", "qa1") == 0
    assert retrieval.only_label("kitchen or office", "office", "Before the kitchen?", "qa1") == 1
    assert retrieval.only_label("milk, then an apple", "apple,milk", "What?", "qa8") == 1
    assert retrieval.only_label("milk", "apple,milk", "What?", "qa8") == 0
    assert retrieval.only_label("go e,n", "e,n", "How?", "qa19") == 1
    assert retrieval.only_label("none", "none", "How many?", "qa7") == 0  # holds "one"


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("B", 1),
        ("But A", 1),  # its first letter
        ("  B. two", 1),
        ("A or B", 0),
        ("two", 1),
        ("I think the answer is: two", 1),
        ("I think the answer is two", 1),
        ("the Answer is B", 1),  # "answer is" is looked for in small letters; then the first letter
        ("the answer is", 0),
        ("maybe AB", 0),
        ("it is C, then B", 0),
        ("", 0),
    ],
)
def test_options_are_read_as_infinitebench_reads_them(said, score):
    assert infinitebench.score("longbook_choice_eng", said, ["two", "B"]) == score


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("B.", 1),
        (" B: load", 1),
        ("B", 0),  # alone it does not count
        ("the answer is: B", 1),
        ("the bug is: `load`", 1),
        ("The correct option is: A", 0),
        ("answer is B", 0),
    ],
)
def test_bugs_are_read_as_infinitebench_reads_them(said, score):
    assert infinitebench.score("code_debug", said, ["load", "B"]) == score


@pytest.mark.parametrize(
    ("task", "said", "answers", "score"),
    [
        ("passkey", " 71432. 1", ["71432"], 1),
        ("number_string", "1. 71432", "71432", 0),
        ("kv_retrieval", '{"a": "v-1"}', ["v-1"], 1),
        ("code_run", "it is 12.", [12], 1),
        ("code_run", "it is 1.2", [12], 0),
        ("code_run", "", [12], 0),
        ("math_find", "The number is 7, or 8", [7], 1),
        ("math_find", "-7", [7], 1),  # signs are not read
        ("math_find", "7.5", [7.5], 1),
        ("math_find", "none", [7], 0),
        ("math_calc", "[3, 8, 5, 1]", [3, 8, 6, 1], 0.5),
        ("math_calc", "3 8", [[3, 8, 6, 1]], 0.5),
        ("longdialogue_qa_eng", "It's Bob, I guess", ["BOB"], 1),
        ("longdialogue_qa_eng", "Bobby", ["BOB"], 0),
        ("longbook_qa_eng", "the cat sat", ["a dog", "cat"], 2 / 3),
        ("longbook_qa_chn", "厦门，大学", ["厦大"], 2 / 3),
        ("longbook_sum_eng", "one two\nthree", ["three\none two"], 1),  # by lines, in any order
        ("longbook_sum_eng", "one two three", ["three one two"], 2 / 3),
    ],
)
def test_answers_of_infinitebench_are_scored_by_its_rules(task, said, answers, score):
    assert infinitebench.score(task, said, answers) == pytest.approx(score)


def test_what_infinitebench_has_not_is_refused():
    with pytest.raises(ValueError, match="no task of InfiniteBench"):
        infinitebench.score("coursera", "a", ["a"])
    with pytest.raises(ValueError, match="needs a right answer"):
        infinitebench.score("passkey", "a", [])


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge", None)
    with pytest.raises(words.MissingMetricLibrary, match=r"selfextend-rag\[evals\]"):
        longbench.rouge_l("a", "a")


def cases_file(tmp_path, cases):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases))
    return path


def test_the_check_says_what_differs(tmp_path, capsys):
    cases = {
        "longbench/qa_f1": [
            {"prediction": "a cat", "reference": "cat", "score": 1.0},
            {"prediction": "cat", "reference": "dog", "score": 1.0},
        ],
        "longbench/classification": {
            "all_classes": ["Ox", "Cow"],
            "cases": [{"prediction": "Ox", "reference": "Ox", "score": 1.0}],
        },
        "leval/exam": [{"subset": "tpo", "prediction": "x", "output": "A", "read_as": "B"}],
        "unheard": [{"prediction": "x", "score": 1}],
        "longbench/retrieval": [{"prediction": "x", "reference": "none", "score": 1}],
    }
    path = cases_file(tmp_path, cases)
    assert main(["eval", "--check-metrics", str(path)]) == 1
    said = capsys.readouterr().out
    assert "longbench/qa_f1 case 1: score must be 1.0, got 0.0" in said
    assert "leval/exam case 0: read_as must be 'B', got 'A'" in said
    assert "unheard case 0: score must be 1, but there is no such metric" in said
    assert "longbench/retrieval case 0: score must be 1, but it can't be scored" in said
    assert said.endswith("2 of 6 cases agree\n")
    assert main(["eval", "--check-metrics", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["agreeing"] == 2
    right = {"kv/accuracy": [{"model_answer": "a1", "value": "A1", "score": 1.0}]}
    assert main(["eval", "--check-metrics", str(cases_file(tmp_path, right))]) == 0


@pytest.mark.parametrize("text", ["[]", "{", '{"longbench/qa_f1": 3}'])
def test_a_file_of_another_form_is_refused(tmp_path, text, capsys):
    path = tmp_path / "cases.json"
    path.write_text(text)
    assert main(["eval", "--check-metrics", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the file of official scores is not here")
def test_every_official_score_is_reproduced():
    check = check_metrics(OFFICIAL)
    assert check.cases > 100
    assert not check.differences, check.explain()
