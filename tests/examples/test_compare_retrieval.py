"""Whole and retrieved are asked the same, are judged by the same answers, and are drawn."""

from __future__ import annotations

import re

from tests.examples.conftest import load


def test_it_compares_both_ways_and_draws_them(run_example, tmp_path):
    asked = tmp_path / "asked.csv"
    asked.write_text("question,answer\nWhat is the access code of the workshop?,48213\n")
    out = run_example("compare_retrieval", "--questions", asked, "-k", 1, "--chart", "chart.svg")
    rows = re.findall(r"^  (whole|BM25, 1) +(\d+) tokens +\S+ s  (right|wrong)  (.*)$", out, re.M)
    (whole, most, verdict, answer), (retrieved, fewer, *_) = rows
    assert (whole, verdict, answer) == ("whole", "right", "48213")
    assert retrieved == "BM25, 1"
    assert int(most) > 1000 > int(fewer)
    assert "whole: 1 of 1 right" in out
    chart = (tmp_path / "chart.svg").read_text()
    assert chart.count("<svg") == 1


def test_an_answer_is_right_if_it_holds_what_was_expected_and_wrong_otherwise(tmp_path, capsys):
    class Parrot:
        name = "parrot"

        def ask(self, question):
            return f"It is {question}!", 3

    results = load("compare_retrieval").compare([Parrot()], {"Blue": "blue", "Red": "green"})
    assert [each.right for each in results] == [True, False]


def test_passages_hold_all_of_a_text_in_order():
    text = "\n\n".join(f"Paragraph {number} " + "word " * (number % 50) for number in range(60))
    found = load("compare_retrieval").passages(text)
    assert "\n\n".join(found) == text
    assert len(found) > 5
    assert all(len(each.split()) >= 80 for each in found[:-1])
