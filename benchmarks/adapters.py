"""What the framework classes cost: time to the first token, and ticks of the event loop.

    python benchmarks/adapters.py first-token --framework langchain
    python benchmarks/adapters.py event-loop --framework llama-index

``first-token`` asks one reading through a framework's class and directly, in turn, again and again;
the ratio is the median over the pairs. ``event-loop`` counts the ticks of 10 ms that an asyncio
ticker misses while a prompt is read for 10 seconds or more. ``long-prefill`` waits for streams
whose prefill takes 90 seconds. ``--json FILE`` writes what is printed, and with it the niceness and
the load of the machine, which decide how late ticks are.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import selfextend_rag
from selfextend_rag import LongContextLLM, Reading, shared_llm

PROSE = Path(selfextend_rag.__file__).parent / "evals" / "data" / "king-james.txt.gz"
QUESTION = "What is the name of the fourth river?"
TICK = 0.01
PREFILL = 10
"""Seconds that a prefill must take at least for its ticks to count."""
LONG_PREFILL = 90
"""Seconds that a prefill may well take."""
LARGEST_WINDOW = {"max_group_size": 128, "rule": "exact"}
"""So that a prefill of the small bundled model can take so long."""

Start = Callable[[], Any]
"""Starts an answer and returns its parts."""


def prose(llm: LongContextLLM, tokens: int) -> str:
    """Return real text of about this many tokens."""
    text = gzip.decompress(PROSE.read_bytes()).decode("utf-8")
    return text[: int(tokens / llm.count_tokens(text[:20_000]) * 20_000)]


def langchain_ways(llm: LongContextLLM, reading: Reading, text: str) -> dict[str, Any]:
    """Return how LangChain's classes, and the direct calls they are built on, start an answer."""
    from langchain_core.documents import Document

    from langchain_selfextend import ChatSelfExtend, create_full_document_chain

    chat = ChatSelfExtend(llm=llm, max_tokens=8)
    chain = create_full_document_chain(chat, [Document(text)])
    messages = [{"role": "system", "content": text}, {"role": "user", "content": QUESTION}]
    return {
        "langchain create_full_document_chain": (
            lambda: (each for each in chain.stream({"input": QUESTION}) if "answer" in each),
            lambda: reading.stream(QUESTION),
        ),
        "langchain ChatSelfExtend, prompt read before": (
            lambda: chat.stream([("system", text), ("human", QUESTION)]),
            lambda: llm.stream(messages, max_new_tokens=8),
        ),
    }


def llama_index_ways(llm: LongContextLLM, reading: Reading, text: str) -> dict[str, Any]:
    """Return how LlamaIndex's classes, and the direct calls they are built on, start an answer."""
    from llama_index.core.llms import ChatMessage

    from llama_index.llms.selfextend import FullDocumentQueryEngine, SelfExtendLLM

    model = SelfExtendLLM(llm, max_new_tokens=8)
    engine = FullDocumentQueryEngine(model, reading, streaming=True)
    said = [ChatMessage(role="system", content=text), ChatMessage(role="user", content=QUESTION)]
    messages = [{"role": message.role.value, "content": message.content} for message in said]
    return {
        "llama-index FullDocumentQueryEngine": (
            lambda: engine.query(QUESTION).response_gen,
            lambda: reading.stream(QUESTION),
        ),
        "llama-index FullDocumentChatEngine": (
            lambda: engine.as_chat_engine().stream_chat(QUESTION).response_gen,
            lambda: reading.stream(QUESTION),
        ),
        "llama-index SelfExtendLLM, prompt read before": (
            lambda: model.stream_chat(said),
            lambda: llm.stream(messages, max_new_tokens=8),
        ),
    }


WAYS = {"langchain": langchain_ways, "llama-index": llama_index_ways}


def first_token(framework: str, tokens: int, pairs: int) -> list[dict[str, Any]]:
    """Time the first token of each class, and of the direct call it is built on."""
    llm = shared_llm("bundled")
    text = prose(llm, tokens)
    reading = llm.read(text, max_new_tokens=8)
    ways: dict[str, tuple[Start, Start]] = WAYS[framework](llm, reading, text)
    rows = []
    for name, (adapter, direct) in ways.items():
        first(adapter), first(direct)
        times = [(first(adapter), first(direct)) for _ in range(pairs)]
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
    """Return the seconds from the call to the first part, and leave the rest."""
    begin = time.perf_counter()
    stream = start()
    next(stream)
    taken = time.perf_counter() - begin
    stream.close()
    return taken


def event_loop(framework: str, tokens: int, chunk_sizes: list[int]) -> list[dict[str, Any]]:
    """Count late ticks of an idle loop, and of one that waits for a prefill of 10 s or more."""
    rows = []
    for chunk_size in chunk_sizes:
        llm = shared_llm("bundled", context={**LARGEST_WINDOW, "chunk_size": chunk_size})
        wait = AWAITED[framework](llm, prose(llm, tokens))
        rows.append({"waits_for": "sleep", **asyncio.run(ticks(lambda: asyncio.sleep(PREFILL)))})
        counts = asyncio.run(ticks(wait))
        if counts["seconds"] < PREFILL:
            raise SystemExit(
                f"the prefill of {tokens} tokens took {counts['seconds']:.1f} s, and {PREFILL} s "
                "are to be measured; give more --tokens"
            )
        rows.append({"waits_for": f"prefill of {tokens} in chunks of {chunk_size}", **counts})
    return rows


def langchain_awaited(llm: LongContextLLM, text: str) -> Callable[[], Any]:
    """Return what awaits an answer to the text through LangChain."""
    from langchain_selfextend import ChatSelfExtend

    chat = ChatSelfExtend(llm=llm, max_tokens=2)
    return lambda: chat.ainvoke(text)


def llama_index_awaited(llm: LongContextLLM, text: str) -> Callable[[], Any]:
    """Return what awaits a stream of an answer to the text through LlamaIndex."""
    from llama_index.core.llms import ChatMessage

    from llama_index.llms.selfextend import SelfExtendLLM

    model = SelfExtendLLM(llm, max_new_tokens=2)

    async def wait() -> None:
        async for _ in await model.astream_chat([ChatMessage(role="user", content=text)]):
            pass

    return wait


AWAITED = {"langchain": langchain_awaited, "llama-index": llama_index_awaited}


def long_prefill(framework: str, seconds: float) -> list[dict[str, Any]]:
    """Stream an answer after a prefill that takes long, because the model sleeps before a chunk."""
    llm = LongContextLLM.bundled(chunk_size=64, prefix_cache_bytes=0)
    prompt = prose(llm, 256)
    chunks = -(-llm.count_tokens([{"role": "user", "content": prompt}]) // 64)

    def sleep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 1:
            time.sleep(seconds / chunks)

    llm.model.register_forward_pre_hook(sleep, with_kwargs=True)
    stream, astream = STREAMS[framework](llm, prompt)

    async def afirst() -> None:
        stream_of_chunks = await astream()
        await anext(stream_of_chunks)
        await stream_of_chunks.aclose()

    rows = [{"what": f"{framework}, stream", "first_chunk_seconds": first(stream)}]
    begin = time.perf_counter()
    asyncio.run(afirst())
    taken = time.perf_counter() - begin
    return [*rows, {"what": f"{framework}, awaited stream", "first_chunk_seconds": taken}]


def langchain_streams(llm: LongContextLLM, text: str) -> tuple[Start, Callable[[], Any]]:
    """Return what starts a stream through LangChain, and an awaited one."""
    from langchain_selfextend import ChatSelfExtend

    chat = ChatSelfExtend(llm=llm, max_tokens=2)

    async def astream() -> Any:
        return chat.astream(text)

    return lambda: chat.stream(text), astream


def llama_index_streams(llm: LongContextLLM, text: str) -> tuple[Start, Callable[[], Any]]:
    """Return what starts a stream through LlamaIndex, and an awaited one."""
    from llama_index.core.llms import ChatMessage

    from llama_index.llms.selfextend import SelfExtendLLM

    model, said = SelfExtendLLM(llm, max_new_tokens=2), [ChatMessage(role="user", content=text)]
    return lambda: model.stream_chat(said), lambda: model.astream_chat(said)


STREAMS = {"langchain": langchain_streams, "llama-index": llama_index_streams}


async def ticks(work: Callable[[], Any]) -> dict[str, Any]:
    """Run a ticker during some work; a tick that comes after the next one was due is missed."""
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
    parser.add_argument("what", choices=["first-token", "event-loop", "long-prefill"])
    parser.add_argument("--framework", choices=list(WAYS), default="langchain")
    parser.add_argument("--tokens", type=int, help="to read; 13,000, for event-loop 24,000")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--chunk-size", type=int, nargs="+", default=[2048])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "first-token":
        rows = first_token(args.framework, args.tokens or 13_000, args.pairs)
    elif args.what == "long-prefill":
        rows = long_prefill(args.framework, LONG_PREFILL)
    else:
        rows = event_loop(args.framework, args.tokens or 24_000, args.chunk_size)
    report = {
        "what": args.what,
        "model": "bundled, float32",
        "threads": args.threads,
        "niceness": os.nice(0),
        "load_average": os.getloadavg()[0],
        "machine": f"{platform.processor() or platform.machine()} {platform.system()}",
        "versions": {
            name: version(name) for name in ("torch", "transformers", f"{args.framework}-core")
        },
        "rows": rows,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
