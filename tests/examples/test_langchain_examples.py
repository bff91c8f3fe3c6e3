"""The agent cites the page that its answer is on, and the conversation keeps what was said."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("langchain", reason="langchain is no part of this environment")


def test_the_agent_answers_and_cites_the_page_of_the_fact(run_example):
    out = run_example("langchain_agent")
    first, second = out.split("How high is the dome?\n")
    assert first.startswith("What is the access code of the workshop?\n48213\n")
    assert re.search(
        r"^  handbook.pdf, page 4 \(\d+%\): .*code of the workshop is 48213", first, re.M
    )
    assert second.startswith("31 feet\n")
    assert re.search(r"^  handbook.pdf, page 3 \(\d+%\): The height of the dome", second, re.M)


def test_the_agent_reads_other_files_and_places_text_by_character(run_example, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("Lunch is at noon. The pass key is 90517. Dogs wait in the yard.\n")
    out = run_example("langchain_agent", note, "-q", "What is the pass key?")
    assert out.startswith("What is the pass key?\n90517\n  note.txt, character 18 (")


def test_the_conversation_continues_from_one_reading_and_from_what_was_said(run_example):
    turns = run_example("langchain_history").strip().split("\n\n")
    first, second = (turn.splitlines() for turn in turns)
    assert first[:2] == ["What is the access code of the workshop?", "48213"]
    assert first[2].startswith("  page 4: ")
    assert second[0] == "What is the budget of the library?"
    assert second[1].startswith("6400")
    assert second[2].startswith("  page 5: ")
    figures = [tuple(map(int, re.findall(r"\d+", turn[-1]))) for turn in (first, second)]
    (short, kept), (longer, still_kept) = figures
    assert longer > short > kept >= 1000  # the first turn's question and answer are in the second
    assert still_kept >= kept


def test_questions_of_a_conversation_may_be_typed(run_example, tmp_path, monkeypatch):
    note = tmp_path / "note.txt"
    note.write_text("Lunch is at noon. The pass key is 90517. Dogs wait in the yard.\n")
    typed = iter(["What is the pass key?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    out = run_example("langchain_history", note, "--interactive")
    assert out.startswith("What is the pass key?\n90517\n  character 18: The pass key is 90517.")
