"""Kills an evaluation at random moments, lets it continue, and compares summaries byte by byte.

python benchmarks/evals_resume.py --kills 20

Each round begins in an empty folder: a run is killed (kill -9) at a moment drawn from the time
that an unbroken one takes, and the next run continues from what it left. The model is a tiny one
with random weights and the bundled tokenizer, so that moments fall on all that a run does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import tempfile
import time
from pathlib import Path

# imported here once, so that the rounds are spent on the runs and not on imports
import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from selfextend_rag.bundled import FOLDER
from selfextend_rag.cli import main
from selfextend_rag.evals import methods, suite  # noqa: F401  see above
from selfextend_rag.evals.suite import figures, report, rows, run, summary  # noqa: F401  see above

TASKS = ("passkey/5", "passkey/64", "ruler/vt", "ruler/niah_multikey_2", "needle")


def save_model(folder: Path) -> None:
    """Write a tiny model with random weights and a window of 128 tokens, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def start(folder: Path) -> int:
    """Start a run in a process of its own and return its id."""
    process = os.fork()
    if process:
        return process
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    made = ["--lengths", "700,1000", "--samples", "3", "--depths", "3", "--limit", "3"]
    model = ["--model", str(folder.parent / "model")]
    os._exit(main(["eval", *TASKS, *model, *made, "--no-plot", "--out", str(folder)]))


def finish(folder: Path) -> float:
    """Run to the end and return the seconds that it took."""
    started = time.perf_counter()
    _, status = os.waitpid(start(folder), 0)
    if status:
        raise SystemExit(f"a run ended with status {status}")
    return time.perf_counter() - started


def main_() -> None:
    """Print a line for each round, and how many of them agreed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, agreed = random.Random(args.seed), 0
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"tiny model, {', '.join(TASKS)} at 700 and 1000 tokens; {versions}")
    print(f"{platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as name:
        save_model(Path(name) / "model")
        whole = Path(name) / "whole"
        seconds = finish(whole)
        expected = (whole / report.SUMMARY).read_bytes()
        total = len((whole / rows.FILE).read_bytes().splitlines())
        print(f"unbroken: {total} rows in {seconds:.1f} s")
        for number in range(args.kills):
            folder = Path(name) / str(number)
            process, moment = start(folder), rng.uniform(0, seconds)
            time.sleep(moment)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            path = folder / rows.FILE
            left = path.read_bytes() if path.exists() else b""
            torn = bool(left) and not left.endswith(b"\n")
            finish(folder)
            same = (folder / report.SUMMARY).read_bytes() == expected
            agreed += same
            kept = left.count(b"\n")
            print(
                f"killed after {moment:5.1f} s: {kept} rows kept{', one torn' if torn else ''}; "
                f"summary {'the same' if same else 'DIFFERS'}",
                flush=True,
            )
    print(json.dumps({"kills": args.kills, "same": agreed}))


if __name__ == "__main__":
    main_()
