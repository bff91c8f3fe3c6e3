"""`benchmarks/gpu.py` walked through on the CPU, so that no GPU's time is spent on a slip."""

from __future__ import annotations

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
# the interpreter multiplies rows of scratch that hold anything, whose scores are then not taken
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    return runpy.run_path(str(SCRIPT))


@pytest.mark.slow
def test_every_section_runs_through(script, tmp_path, capsys):
    assert script["main"](["--dry-run", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["failures"] == {}
    assert result["facts"]["gpu"] == "none: a dry run"
    measured = " ".join(row["what"] for row in result["rows"])
    sections = "error / flash", "tune", "prefill", "decode", "copy", "question,", "authors", "model"
    assert [name for name in sections if name not in measured] == []
    assert all(row["met"] is None for row in result["rows"])  # a dry run meets no bar
    assert "no section failed" in capsys.readouterr().out


def test_a_failing_section_is_reported_and_the_others_go_on(script, tmp_path, capsys):
    def broken(run):
        raise RuntimeError("out of luck")

    def fine(run):
        run.add("authors' prefill / ours", "no shape", 2.0)
        run.add("decode / plain", "no shape", 2.0)

    script["SECTIONS"] |= {"tune": broken, "prefill": fine}
    sections = ["--sections", "tune", "prefill"]
    assert script["main"](["--dry-run", "--out", str(tmp_path), *sections]) == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["failures"] == {"tune": "RuntimeError: out of luck"}
    assert [row["met"] for row in result["rows"]] == [True, False]
    assert "1 of 2 bars met; missed: ['decode / plain (no shape)']" in capsys.readouterr().out


def test_tiles_that_err_are_not_taken(script, tmp_path, monkeypatch):
    speed = sys.modules["gpu_speed"]
    right = speed.attention_with_lse
    monkeypatch.setattr(
        speed, "attention_with_lse", lambda *args, **options: (right(*args, **options)[0] * 2, None)
    )
    assert script["main"](["--dry-run", "--out", str(tmp_path), "--sections", "tune"]) == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["failures"]["tune"].count("differs by") == 3
    assert result["rows"] == []


def vllm_script(*arguments):
    """`benchmarks/vllm_gpu.py`, in a process of its own: it looks for ``--dry-run`` at import."""
    command = [sys.executable, str(SCRIPT.with_name("vllm_gpu.py")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_kernel_for_vllm_is_checked_and_what_is_not_there_is_said(tmp_path):
    done = vllm_script("--dry-run", "--sections", "kernel", "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "vllm_gpu.json").read_text())["rows"]
    assert [row["right"] for row in rows] == [True] * 3
    if importlib.util.find_spec("vllm") is None:
        done = vllm_script("--dry-run", "--sections", "engine", "--out", tmp_path)
        assert "engine: not run, vLLM is not installed" in done.stdout


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = vllm_script("--out", tmp_path)
    assert done.returncode == 2
    assert "no CUDA device is here" in done.stderr
