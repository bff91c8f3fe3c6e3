"""`benchmarks/weight_bits.py`: what it measures, and the table that the page has of it."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from selfextend_rag.bundled import FOLDER
from selfextend_rag.llm.loading.sources import load_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script():
    return runpy.run_path(str(ROOT / "benchmarks" / "weight_bits.py"))


def test_it_measures_each_way_on_each_text(script, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The old mill is by the river. The height of the old mill is 48 feet. " * 9)
    out = tmp_path / "out.json"
    command = ["weight_bits.py", str(text), "--model", str(FOLDER), "--json", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--tokens", "40", "--rows", "2"])
    script["main"]()
    found = json.loads(out.read_text())
    assert (found["texts"], found["tokens"]) == (["text.txt"], [80])
    full, eight, _, _, four = (way["nats"][0] for way in found["ways"])
    assert 0 < abs(eight - full) < 0.02 * full
    assert abs(eight - full) < abs(four - full)
    printed = capsys.readouterr().out.splitlines()
    assert printed[2] == f"| float32 | {full:.3f} | {full:.3f} |"
    assert printed[3].startswith(f"| 8 bits, float32 | {eight:.3f} (")


def test_rows_are_all_of_a_text_in_order(script):
    tokenizer = load_tokenizer(FOLDER)
    text = "One two three four five six seven. " * 5
    ids = tokenizer(text, add_special_tokens=False).input_ids
    rows = script["rows_of"](tokenizer, text, 11, 100)
    assert {row[0] for row in rows} == {tokenizer.bos_token_id}
    assert [x for row in rows for x in row[1:]] == ids
    assert max(map(len, rows)) == 11
    assert script["rows_of"](tokenizer, text, 11, 2) == rows[:2]


def test_the_page_has_the_table_of_the_committed_result(script):
    found = json.loads((ROOT / "benchmarks" / "results" / "weight_bits.json").read_text("utf-8"))
    table = script["table"](found["ways"], found["texts"])
    assert table in (ROOT / "docs" / "measurements.md").read_text("utf-8")
