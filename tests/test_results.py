"""Committed results name models and files as readers know them, not by places of one machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted(
    path
    for folder in ("docs/results", "benchmarks/results")
    for path in (ROOT / folder).iterdir()
    if path.suffix in (".json", ".jsonl")
)


def texts(value: object) -> Iterator[str]:
    """All texts in JSON values, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, *texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_results_hold_no_path_of_a_machine(path):
    lines = path.read_text("utf-8")
    values = [json.loads(x) for x in (lines.splitlines() if path.suffix == ".jsonl" else [lines])]
    assert not [x for x in texts(values) if Path(x).is_absolute()]


def test_the_page_has_what_peers_were_measured_at():
    rows = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text("utf-8"))["rows"]
    page = (ROOT / "docs" / "measurements.md").read_text("utf-8")
    for row in rows:
        read, answer = row["read_tokens_a_second"], row["answer_tokens_a_second"]
        assert f"| {row['way']} | {read:.0f} | {answer:.1f} |" in page
