"""The notebooks run from the top, and what is committed of them is what they show."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("llama_index.core", reason="llama-index-core is an extra and not installed")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "whole_documents.ipynb"
CHAT = ROOT / "examples" / "document_chat.ipynb"


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "examples" / "notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(notebook):
    """All that a notebook's code cells show, one text for each cell."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [json.dumps(cell["outputs"], ensure_ascii=False) for cell in cells]


def test_its_cells_run_and_show_what_is_committed(runner, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SELFEXTEND_RAG_HOME", str(tmp_path))
    committed, now = shown(json.loads(NOTEBOOK.read_text("utf-8"))), shown(runner.run(NOTEBOOK))
    for outputs in (committed, now):
        plan, bar, answer, report, *frameworks = outputs
        assert "SelfExtend with group_size" in plan
        assert re.search(r"reading: 100%.* (\d{4})/\1 ", bar)
        assert "<p>Euphrates</p>" in answer
        assert re.search(r"<mark>[^<]*And the fourth river is Euphrates\.</mark>", answer)
        assert "supported" in report
        assert report.count("extended") >= 4
        assert all("Euphrates" in text for text in frameworks)
        assert len(frameworks) == 2
        assert "Loading weights" not in "".join(outputs)


def test_the_chat_answers_with_pages_keeps_what_was_read_and_refuses_what_does_not_fit(
    runner, monkeypatch, tmp_path
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SELFEXTEND_RAG_HOME", str(tmp_path))
    committed, now = shown(json.loads(CHAT.read_text("utf-8"))), shown(runner.run(CHAT))
    for outputs in (committed, now):
        plan, bar, code, budget, several, kept, refused = outputs
        assert "SelfExtend with group_size" in plan
        assert "reading: 100%" in bar
        assert "<p>48213</p>" in code
        assert "<mark>The access code of the workshop is 48213.</mark>" in code
        assert "Handbook of the observatory, page 4 (" in code
        assert "<p>6400" in budget
        assert "page 5 (" in budget
        assert "What is the access code of the workshop? 48213" in several
        assert "48213" in kept
        assert "exceeds the extended window of" in refused


def test_it_stops_at_a_cell_that_fails(runner, tmp_path):
    cell = {"cell_type": "code", "source": ["1 / 0"]}
    (tmp_path / "wrong.ipynb").write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(ZeroDivisionError):
        runner.run(tmp_path / "wrong.ipynb")


def test_of_a_bar_that_was_drawn_again_the_last_state_is_shown(runner):
    assert runner.shown("a\n\rbar 1\rbar 2\nb") == ["a\n", "bar 2\n", "b"]
