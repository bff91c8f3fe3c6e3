"""How soon a caller is back that gives up on a long prompt, and whether the model runs on.

    python benchmarks/cancellation.py [--times 20] [--tokens 12000] [--json FILE]

``asyncio.wait_for(chat.ainvoke(text), 2)`` on a prompt whose prefill takes about a minute, by a
model of random weights that is large enough for it; the first time, the model has never run, and is
looked at within these seconds. Prints the seconds from the time-out to the caller's return, the
forwards that began after it, and, to compare, the seconds of a chunk that is read to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from adapters import prose
from transformers import LlamaConfig, LlamaForCausalLM

from langchain_selfextend import ChatSelfExtend
from selfextend_rag import LongContextLLM, shared_llm

PATIENCE = 2.0
"""Seconds that the caller waits."""


def large_model() -> LongContextLLM:
    """Return a model of some 100 million random weights, with the bundled model's tokenizer."""
    tokenizer = shared_llm("bundled").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    return LongContextLLM(LlamaForCausalLM(config).eval(), tokenizer, prefix_cache_bytes=0)


async def given_up(chat: ChatSelfExtend, text: str, begun: list[float]) -> tuple[float, int]:
    """Return the seconds from the time-out to the return, and the forwards that began later."""
    begin = time.monotonic()
    try:
        await asyncio.wait_for(chat.ainvoke(text), PATIENCE)
    except TimeoutError:
        back = time.monotonic() - begin - PATIENCE
    else:
        raise SystemExit("the prompt is too short: it was answered in time")
    await asyncio.sleep(1)  # in which a forward could begin
    return back, sum(at > begin + PATIENCE for at in begun)


def chunk_seconds(llm: LongContextLLM, text: str, chunks: int = 2) -> list[float]:
    """Return the seconds of the first chunks of a prompt, read to their ends."""
    times = [time.monotonic()]
    llm.generate(
        [{"role": "user", "content": text}],
        progress=lambda done, total: times.append(time.monotonic()),
        cancelled=lambda: len(times) > chunks,
    )
    return [after - before for before, after in itertools.pairwise(times)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=12_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    llm = large_model()
    text, begun = prose(llm, args.tokens), list[float]()
    llm.model.register_forward_pre_hook(lambda module, given: begun.append(time.monotonic()))
    chat = ChatSelfExtend(llm=llm, max_tokens=8)
    found = [asyncio.run(given_up(chat, text, begun)) for _ in range(args.times)]
    seconds = [back for back, _ in found]
    report: dict[str, Any] = {
        "model": "llama, 100 M random weights, float32",
        "tokens": llm.count_tokens([{"role": "user", "content": text}]),
        "threads": args.threads,
        "load_average": os.getloadavg()[0],
        "machine": f"{platform.processor() or platform.machine()} {platform.system()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "langchain-core")},
        "seconds_back": {
            "first": seconds[0],
            "median": statistics.median(seconds),
            "largest": max(seconds),
        },
        "forwards_begun_later": sum(later for _, later in found),
        "seconds_of_a_chunk": chunk_seconds(llm, text),
    }
    written = json.dumps(report, indent=2)
    print(written)
    if args.json:
        args.json.write_text(written + "\n")


if __name__ == "__main__":
    main()
