"""How long it takes to know a model, over a prefill of 2,048 tokens of the same model.

    python benchmarks/support.py --model FOLDER [--repeat 3]

Measures `support(model)` at first, and of a second instance whose configuration is known by then,
each after a forward that brings the weights into memory. One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time

import torch
import transformers
from transformers import AutoModelForCausalLM

from selfextend_rag import support

TOKENS = 2048


def seconds(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@torch.inference_mode()
def measure(name: str) -> dict[str, float]:
    """Return the seconds of one prefill, one first `support` and one of a known model."""
    found = {}
    with tempfile.TemporaryDirectory() as home:
        os.environ["SELFEXTEND_RAG_HOME"] = home
        for kind in ("first", "known"):
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
            ids = torch.arange(TOKENS)[None] % 1000 + 100
            model(input_ids=ids[:, :16], use_cache=False)
            before = seconds(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))
            found[kind] = seconds(lambda: support(model))
            after = seconds(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))
            found[f"prefill around {kind}"] = (before + after) / 2
            if not support(model).supported:
                raise SystemExit(support(model).reason)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="hub id or folder")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    runs = [measure(args.model) for _ in range(args.repeat)]
    ratios = {
        kind: statistics.median(run[kind] / run[f"prefill around {kind}"] for run in runs)
        for kind in ("first", "known")
    }
    print(
        json.dumps(
            {
                "model": args.model,
                "tokens": TOKENS,
                "dtype": "float32",
                "threads": 1,
                "machine": platform.machine(),
                "cpu": torch.backends.cpu.get_cpu_capability(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "seconds": runs,
                "support over a prefill": ratios,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
