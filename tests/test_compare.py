"""`benchmarks/compare.py` runs both checkouts and divides this one's figures by the other's."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "compare.py"
BENCHMARK = """
import json, pathlib, sys
rows = [{"seconds": SECONDS * float(sys.argv[1]), "name": "x", "ok": True, "none": 0}]
pathlib.Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps({"rows": rows}))
"""


def checkout(folder: Path, seconds: float) -> Path:
    (folder / "benchmarks").mkdir(parents=True)
    (folder / "benchmarks" / "b.py").write_text(BENCHMARK.replace("SECONDS", str(seconds)))
    return folder


def test_ratios_are_this_checkout_s_figures_by_the_other_s(tmp_path, monkeypatch, capsys):
    script = runpy.run_path(str(SCRIPT))
    here, other = checkout(tmp_path / "here", 3.0), checkout(tmp_path / "other", 2.0)
    monkeypatch.setitem(script["main"].__globals__, "ROOT", here)
    out = tmp_path / "out.json"
    monkeypatch.setattr(
        sys, "argv", ["compare.py", "--rounds", "2", "--json", str(out), str(other), "b.py", "2"]
    )
    script["main"]()
    assert capsys.readouterr().out == " 1.500  rows[0].seconds = 6\n"
    assert json.loads(out.read_text()) == {
        "command": ["b.py", "2"],
        "ratios": {"rows[0].seconds": 1.5},
    }
