"""Each document is a row, each property a column, and no cell breaks the schema."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.examples.conftest import load

LIGHTHOUSES = Path(__file__).parents[2] / "examples" / "documents" / "lighthouses"


@pytest.fixture
def two_reports(tmp_path):
    """Return a folder with two of the reports; four take a while."""
    folder = tmp_path / "reports"
    folder.mkdir()
    for name in ("black-head.md", "gull-rock.md"):
        (folder / name).write_bytes((LIGHTHOUSES / name).read_bytes())
    return folder


def test_it_prints_the_table_of_its_folder(run_example, two_reports):
    assert run_example("extract_table", two_reports).splitlines() == [
        "document,height_feet,boat",
        "The light at Black Head,45,1833",
        "The light at Gull Rock,62,1871",
    ]


def test_a_schema_evidence_and_a_file_may_be_given(run_example, tmp_path, capsys):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("Lunch is at noon. The pass key is 48213. Dogs wait outside.")
    (folder / "b.txt").write_text("Cats sleep. The pass key is 90517. The yard is large.")
    (folder / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    schema = tmp_path / "schema.json"
    key = {"type": "integer", "minimum": 10000, "maximum": 99999}
    schema.write_text(json.dumps({"type": "object", "properties": {"pass_key": key}}))
    table = tmp_path / "keys.csv"
    options = ["--schema", schema, "--evidence", "--out", table]
    assert run_example("extract_table", folder, *options) == ""
    rows = list(csv.reader(table.open(encoding="utf-8", newline="")))
    assert rows[0] == ["document", "pass_key", "pass_key evidence"]
    assert [row[:2] for row in rows[1:]] == [["a", "48213"], ["b", "90517"]]
    assert ["The pass key is" in row[2] for row in rows[1:]] == [True, True]


def test_what_is_skipped_and_what_was_cut_off_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("Lunch is at noon. The pass key is 48213.")
    (folder / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    schema = tmp_path / "schema.json"
    endless = {"type": "string", "minLength": 500}
    schema.write_text(json.dumps({"type": "object", "properties": {"story": endless}}))
    load("extract_table").main([str(folder), "--schema", str(schema), "--out", "t.csv"])
    said = capsys.readouterr().err
    assert "c.png" in said
    assert "a: story was cut off" in said
    assert Path("t.csv").read_text() == "document,story\na,\n"
