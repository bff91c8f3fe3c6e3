"""Damaged files are read or refused, never a crash; `benchmarks/damaged_documents.py` counts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "damaged_documents.py"


def run(tmp_path, *options):
    out = tmp_path / "report.json"
    command = [sys.executable, SCRIPT, *options, "--json", out]
    status = subprocess.run(command, capture_output=True, check=False).returncode
    return status, json.loads(out.read_text())


@pytest.mark.parametrize("kind", ["txt", "html", "csv", "ipynb"])
def test_damaged_files_are_read_or_refused(tmp_path, kind):
    status, report = run(tmp_path, kind, "--count", "150", "--seconds", "10")
    assert report[kind]["failures"] == {}
    assert sum(report[kind]["outcomes"].values()) == 150
    assert set(report[kind]["outcomes"]) <= {"read", "read with remarks", "refused"}
    assert status == 0


@pytest.mark.parametrize(
    ("limits", "outcome"),
    [(["--seconds", "0"], "too slow"), (["--megabytes", "1"], "out of memory")],
)
def test_a_file_over_the_limits_is_counted_and_kept(tmp_path, limits, outcome):
    """Without this the counts above could not fail."""
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "a.txt").write_bytes(b"many words " * 1_000_000)
    options = ["--seeds", tmp_path / "seeds", "--keep", tmp_path / "kept", *limits]
    status, report = run(tmp_path, "txt", "--count", "2", *options)
    assert report["txt"]["outcomes"] == {outcome: 2}
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert status == 1
