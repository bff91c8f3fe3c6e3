"""Reading speed of the bundled model over that of weights that it had in an earlier commit.

    python benchmarks/reading_speed.py [--former COMMIT] [--rounds 7] [--json FILE]

Both read the same text of Genesis, in turn, on one thread; ratios are medians over the rounds.
Their tokenizers differ, so tokens a second and text a second are two figures.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch

from selfextend_rag import LongContextLLM

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "selfextend_rag/bundled"
FILES = ("config.json", "generation_config.json", "model.safetensors")
FILES += ("tokenizer.json", "tokenizer_config.json")
CHARACTERS = (1500, 14_000)


def former(commit: str, folder: Path) -> LongContextLLM:
    """Return the bundled model of a commit."""
    for name in FILES:
        command = ["git", "show", f"{commit}:{FOLDER}/{name}"]
        stored = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
        (folder / name).write_bytes(stored)
    return LongContextLLM.from_pretrained(str(folder))


def figures(now: LongContextLLM, before: LongContextLLM, text: str, rounds: int) -> dict:
    """Return medians of tokens a second, and of ratios within a round."""
    pairs = []
    for number in range(rounds + 1):
        order = (now, before) if number % 2 else (before, now)
        readings = {llm: llm.read(text) for llm in order}
        pairs.append([readings[llm] for llm in (now, before)])
    pairs = pairs[1:]  # the first round warms up
    tokens = [reading.plan.prompt_tokens for reading in pairs[0]]
    times = [[reading.seconds for reading in pair] for pair in pairs]
    text_ratio = statistics.median(b / a for a, b in times)
    return {
        "characters": len(text),
        "tokens": tokens[0],
        "former_tokens": tokens[1],
        "tokens_a_second": tokens[0] / statistics.median(a for a, _ in times),
        "former_tokens_a_second": tokens[1] / statistics.median(b for _, b in times),
        "text_ratio": text_ratio,
        "tokens_ratio": text_ratio * tokens[0] / tokens[1],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--former", default="49bd48f")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    genesis = (ROOT / "examples/documents/genesis.txt").read_text("utf-8") * 2
    with tempfile.TemporaryDirectory() as folder:
        now, before = LongContextLLM.bundled(), former(args.former, Path(folder))
        found = [figures(now, before, genesis[:n], args.rounds) for n in CHARACTERS]
    report = {
        "former": args.former,
        "rounds": args.rounds,
        "threads": 1,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "results": found,
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
