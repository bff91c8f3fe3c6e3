"""What the framework classes cost: time to the first token, and ticks of the event loop.

    python benchmarks/adapters.py first-token
    python benchmarks/adapters.py event-loop

``first-token`` asks one reading through a framework's class and directly, in turn, again and again;
the ratio is the median over the pairs. ``event-loop`` counts the ticks of 10 ms that an asyncio
ticker misses while a long prompt is read. ``--json FILE`` writes what is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from langchain_core.documents import Document

import selfextend_rag
from langchain_selfextend import ChatSelfExtend, create_full_document_chain
from selfextend_rag import LongContextLLM

PROSE = Path(selfextend_rag.__file__).parent / "evals" / "data" / "king-james.txt.gz"
QUESTION = "What is the name of the second river?"
TICK = 0.01

Start = Callable[[], Any]
"""Starts an answer and returns its pieces."""


def prose(llm: LongContextLLM, tokens: int) -> str:
    """Return real text of about this many tokens."""
    text = gzip.decompress(PROSE.read_bytes()).decode("utf-8")
    return text[: int(tokens / llm.count_tokens(text[:20_000]) * 20_000)]


def first_token(tokens: int, pairs: int) -> list[dict[str, Any]]:
    """Time the first token of each class, and of the direct call it stands on."""
    chat = ChatSelfExtend(model="bundled", max_tokens=8)
    llm = chat.llm
    text = prose(llm, tokens)
    reading = llm.read(text, max_new_tokens=8)
    chain = create_full_document_chain(chat, [Document(text)])
    messages = [{"role": "system", "content": text}, {"role": "user", "content": QUESTION}]
    ways: dict[str, tuple[Start, Start]] = {
        "langchain create_full_document_chain": (
            lambda: (each for each in chain.stream({"input": QUESTION}) if "answer" in each),
            lambda: reading.stream(QUESTION),
        ),
        "langchain ChatSelfExtend, prompt read before": (
            lambda: chat.stream([("system", text), ("human", QUESTION)]),
            lambda: llm.stream(messages, max_new_tokens=8),
        ),
    }
    rows = []
    for name, (framework, direct) in ways.items():
        first(framework), first(direct)
        times = [(first(framework), first(direct)) for _ in range(pairs)]
        ratios = sorted(a / b for a, b in times)
        rows.append(
            {
                "what": name,
                "prompt_tokens": reading.plan.prompt_tokens,
                "framework_seconds": statistics.median(a for a, _ in times),
                "direct_seconds": statistics.median(b for _, b in times),
                "ratio": statistics.median(ratios),
                "ratio_low": ratios[len(ratios) // 4],
                "ratio_high": ratios[3 * len(ratios) // 4],
                "pairs": pairs,
            }
        )
    return rows


def first(start: Start) -> float:
    """Return the seconds from the call to the first piece, and leave the rest."""
    begin = time.perf_counter()
    stream = start()
    next(stream)
    taken = time.perf_counter() - begin
    stream.close()
    return taken


def event_loop(tokens: int, chunk_sizes: list[int]) -> list[dict[str, Any]]:
    """Count late ticks of an idle loop, and of one that waits for a prefill."""
    rows = []
    for chunk_size in chunk_sizes:
        chat = ChatSelfExtend(model="bundled", max_tokens=2, chunk_size=chunk_size)
        text = prose(chat.llm, tokens)
        rows.append({"waits_for": "sleep", **asyncio.run(ticks(lambda: asyncio.sleep(5)))})
        counts = asyncio.run(ticks(lambda chat=chat, text=text: chat.ainvoke(text)))
        rows.append({"waits_for": f"prefill of {tokens} in chunks of {chunk_size}", **counts})
    return rows


async def ticks(work: Callable[[], Any]) -> dict[str, Any]:
    """Run a ticker beside some work; a tick that comes after the next one was due is missed."""
    late: list[float] = []
    done = asyncio.Event()

    async def tick() -> None:
        begin = time.perf_counter()
        while not done.is_set():
            due = begin + (len(late) + 1) * TICK
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            late.append(time.perf_counter() - due)

    ticker = asyncio.create_task(tick())
    begin = time.perf_counter()
    await work()
    seconds = time.perf_counter() - begin
    done.set()
    await ticker
    missed = sum(seconds_late > TICK for seconds_late in late)
    return {
        "seconds": seconds,
        "ticks": len(late),
        "missed": missed,
        "missed_share": missed / len(late),
        "median_late_ms": 1000 * statistics.median(late),
        "most_late_ms": 1000 * max(late),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["first-token", "event-loop"])
    parser.add_argument("--tokens", type=int, default=13_000)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--chunk-size", type=int, nargs="+", default=[2048])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "first-token":
        rows = first_token(args.tokens, args.pairs)
    else:
        rows = event_loop(args.tokens, args.chunk_size)
    report = {
        "what": args.what,
        "model": "bundled, float32",
        "threads": args.threads,
        "machine": f"{platform.processor() or platform.machine()} {platform.system()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "langchain-core")},
        "rows": rows,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
