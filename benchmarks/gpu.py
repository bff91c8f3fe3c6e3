"""SelfExtend attention on a GPU: right against float64, then timed in pairs with plain attention.

    python benchmarks/gpu.py --out runs/gpu

One command, under 9 minutes. It needs torch, triton and transformers alone (and matplotlib for the
picture). Sections: correctness, tune, prefill, decode, questions, memory, authors, model. One that
fails is reported, and the others go on. ``--dry-run`` walks through all of it on a CPU, tiny, in
Triton's interpreter; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
if "--dry-run" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is first imported

import torch
import triton
from gpu_correctness import correctness
from gpu_model import model_speed
from gpu_run import Run
from gpu_speed import authors, decode, memory, prefill, questions, tune


def report(run: Run, folder: Path, failures: dict[str, str]) -> None:
    """Write ``gpu.json`` and ``gpu.png``."""
    gpu = "none: a dry run" if run.dry else torch.cuda.get_device_name()
    facts = {
        "gpu": gpu,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "dtype": str(run.dtype),
        "heads": [run.heads, run.kv_heads, run.dim],
        "method": [run.method.group_size, run.method.neighbor_window],
        "pairs": run.pairs,
        "seconds": round(time.perf_counter() - run.began, 1),
    }
    folder.mkdir(parents=True, exist_ok=True)
    result = {"facts": facts, "rows": run.rows, "failures": failures}
    (folder / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    bars = [row for row in run.rows if row["met"] is not None]
    missed = [f"{row['what']} ({row['shape']})" for row in bars if not row["met"]]
    print(f"\n{facts}\n{len(bars) - len(missed)} of {len(bars)} bars met; missed: {missed}")
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no matplotlib, no picture")
        return
    shown = bars or run.rows
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.25 * len(shown)), layout="constrained")
    relative = [row["value"] / (row["bar"] or 1) for row in shown]
    axes.barh([f"{r['what']}: {r['shape']}" for r in shown], relative)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("measured / bar")
    axes.set_title(gpu)
    figure.savefig(folder / "gpu.png", dpi=120)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--quick", action="store_true", help="shorter sequences, fewer pairs")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU, interpreted")
    parser.add_argument("--sections", nargs="+", choices=[*SECTIONS], default=[*SECTIONS])
    parser.add_argument("--seconds", type=float, default=500, help="no section starts after this")
    given = parser.parse_args(arguments)
    if not (given.dry_run or torch.cuda.is_available()):
        parser.error("no CUDA device is here; --dry-run walks through on a CPU")
    run = Run(given.dry_run, given.quick, given.seconds)
    failures: dict[str, str] = {}
    with torch.inference_mode():
        for name in given.sections:
            print(f"\n## {name}, {run.left():.0f} s left", flush=True)
            if run.left() < 0:
                failures[name] = "no time left"
                continue
            try:
                SECTIONS[name](run)
            except Exception as error:  # noqa: BLE001  the other sections are worth having
                failures[name] = f"{type(error).__name__}: {error}"
                traceback.print_exc()
            if not run.dry:
                torch.cuda.empty_cache()
    report(run, given.out, failures)
    print("failed:" if failures else "no section failed", *failures)
    return bool(failures)


SECTIONS: dict[str, Callable[[Run], None]] = {
    "correctness": correctness,
    "tune": tune,
    "prefill": prefill,
    "decode": decode,
    "questions": questions,
    "memory": memory,
    "authors": authors,
    "model": model_speed,
}

if __name__ == "__main__":
    sys.exit(main())
