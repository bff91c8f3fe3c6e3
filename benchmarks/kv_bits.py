"""Keys and values in fewer bits: memory, time to read, and time for a token of an answer.

    python benchmarks/kv_bits.py

The bundled model reads a real document, repeated to each length, with its keys and values in full
precision, in 8 bits and in 4, and answers with 32 tokens; in turn, several rounds. Times are
medians over the rounds, ratios medians of the ratios to full precision within a round. ``--json
FILE`` writes what is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
import transformers
from readings import QUESTIONS, document

from selfextend_rag import LongContextLLM

BITS = (None, 8, 4)
LENGTHS = (2000, 8000, 16000)
ANSWER = {"max_new_tokens": 32, "stop": (), "stop_token_ids": (), "evidence": False}


def measured(llm: LongContextLLM, text: str) -> dict[str, float]:
    """One round of one setting."""
    reading = llm.read(text)
    reading.ask(QUESTIONS[0], **ANSWER)  # what is made at the first question is there for the next
    usage = reading.ask(QUESTIONS[1], **ANSWER).usage
    return {
        "tokens": reading.plan.prompt_tokens,
        "reading_mib": reading.nbytes / 2**20,
        "read_seconds": reading.seconds,
        "token_milliseconds": 1000 / usage.tokens_per_second,
    }


def summary(rounds: dict[int | None, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians, and medians of the ratios to full precision."""
    rows = []
    for bits, found in rounds.items():
        row: dict[str, Any] = {"kv_bits": bits}
        for name in found[0]:
            row[name] = statistics.median(one[name] for one in found)
            if name != "tokens":
                ratios = [a[name] / b[name] for a, b in zip(found, rounds[None], strict=True)]
                row[f"{name}_over_full"] = statistics.median(ratios)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    llms = {b: LongContextLLM.bundled(kv_bits=b, max_group_size=128) for b in BITS}
    rows = []
    for length in args.lengths:
        text = document(llms[None], length)
        rounds: dict[int | None, list[dict[str, float]]] = {bits: [] for bits in BITS}
        for _ in range(args.rounds):
            for bits, llm in llms.items():
                rounds[bits].append(measured(llm, text))
        rows += summary(rounds)
        for row in rows[-len(BITS) :]:
            print({name: round(x, 3) if x else x for name, x in row.items()}, flush=True)
    report = {
        "model": "bundled, float32",
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rounds": args.rounds,
        "results": rows,
    }
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
