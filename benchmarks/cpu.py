"""Speed and memory of SelfExtend attention on the CPU, paired with ordinary attention.

    python benchmarks/cpu.py prefill [--dtype bfloat16 --kv-heads 2 --head-dim 128]
    python benchmarks/cpu.py decode
    python benchmarks/cpu.py whole
    python benchmarks/cpu.py memory

Each pair is run in turn, again and again; the ratio is the median over the pairs. ``--json FILE``
writes what is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from selfextend_rag import Engine, GenerationSettings, SelfExtend, extended
from selfextend_rag.attention import self_extend_attention
from selfextend_rag.cache import SelfExtendCache
from selfextend_rag.rope import RotaryLayout

HEADS, HEAD_DIM = 8, 64
METHOD = SelfExtend(8, 1024)
SHORT = SelfExtend(8, 256)  # of whole models: 64 windows are 16,384 tokens


def seconds(run: Callable[[], Any]) -> float:
    """Return how long a run takes; of one thread its CPU time, which a shared core changes less."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    run()
    return clock() - begin


def paired(ours: Callable[[], Any], plain: Callable[[], Any], pairs: int) -> dict[str, float]:
    """Time both in turn, after one warm-up each."""
    ours(), plain()
    times = [(seconds(ours), seconds(plain)) for _ in range(pairs)]
    ratios = sorted(a / b for a, b in times)
    return {
        "ours_seconds": statistics.median(a for a, _ in times),
        "plain_seconds": statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[len(ratios) // 4],
        "ratio_high": ratios[3 * len(ratios) // 4],
        "pairs": pairs,
    }


def prefill(
    lengths: list[int], pairs: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Un-rotated q and k in, against causal attention with rotation and without."""
    rows = []
    rotary = RotaryLayout(tuple(1e4 ** (-2 * i / dim) for i in range(dim // 2)))
    for n in lengths:
        q, k, v = (torch.randn(1, heads, n, dim).to(dtype) for heads in (HEADS, kv_heads, kv_heads))
        positions = torch.arange(n)

        def ours(q=q, k=k, v=v) -> Any:
            return self_extend_attention(q, k, v, rotary=rotary, settings=METHOD, impl="blocked")

        def plain(q=q, k=k, v=v) -> Any:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def rotated(q=q, k=k, v=v, positions=positions) -> Any:
            q, k = rotary.rotate(q, positions), rotary.rotate(k, positions)
            return plain(q, k, v)

        rows.append({"tokens": n, "baseline": "sdpa", **paired(ours, plain, pairs)})
        rows.append({"tokens": n, "baseline": "rotation + sdpa", **paired(ours, rotated, pairs)})
    return rows


def model() -> LlamaForCausalLM:
    """A random model of 4 layers, 8 heads of 64."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048, hidden_size=512, intermediate_size=1408, num_hidden_layers=4,
            num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=4096,
        )
    ).eval()  # fmt: skip


def decode(cached: list[int], pairs: int, tokens: int = 16) -> list[dict[str, Any]]:
    """Whole-model decode after ``cached`` tokens: extended with our cache, stock with its own."""
    network, rows = model(), []
    for n in cached:
        ids = torch.randint(0, 2048, (1, n))
        caches = {}
        for name in ("ours", "plain", "plain_ours"):
            caches[name] = (DynamicCache if name == "plain" else SelfExtendCache)(
                config=network.config
            )
        with extended(network, METHOD):
            fill(network, ids, caches["ours"])
        fill(network, ids, caches["plain"])
        fill(network, ids, caches["plain_ours"])

        def ours(cache=caches["ours"]) -> None:
            with extended(network, METHOD):
                step(network, cache, tokens)

        def plain(cache=caches["plain"]) -> None:
            step(network, cache, tokens)

        def plain_ours(cache=caches["plain_ours"]) -> None:
            step(network, cache, tokens)

        rows.append({"cached": n, "baseline": "DynamicCache", **paired(ours, plain, pairs)})
        rows.append({"cached": n, "baseline": "our cache", **paired(ours, plain_ours, pairs)})
    return rows


def whole(lengths: list[int], pairs: int, tokens: int = 16) -> list[dict[str, Any]]:
    """Reading and answering by the engine, extended and plain, at lengths of many windows."""
    engine, rows = Engine(model()), []
    options = GenerationSettings(max_new_tokens=tokens, stop_token_ids=())
    for n in lengths:
        ids = torch.randint(0, 2048, (n,)).tolist()
        ways = {"ours": SHORT, "plain": None}
        prefixes = {name: engine.prefill(ids[:-1], settings=way) for name, way in ways.items()}

        def read(name: str, ids=ids, ways=ways) -> Any:
            return engine.prefill(ids[:-1], settings=ways[name])

        def answer(name: str, ids=ids, prefixes=prefixes) -> Any:
            return list(engine.generate(ids, options, prefix=prefixes[name]))

        for what, run in (("reading", read), ("answering", answer)):
            found = paired(partial(run, "ours"), partial(run, "plain"), pairs)
            windows = n / SHORT.neighbor_window
            rows.append({"tokens": n, "neighbor_windows": windows, "what": what, **found})
    return rows


def fill(network: LlamaForCausalLM, ids: torch.Tensor, cache: Any, chunk: int = 2048) -> None:
    for part in ids.split(chunk, dim=1):
        network(part, past_key_values=cache, logits_to_keep=1)


def step(network: LlamaForCausalLM, cache: Any, tokens: int) -> None:
    token = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(tokens):
        network(token, past_key_values=cache)
    cache.crop(-tokens)


def memory(tokens: int) -> list[dict[str, Any]]:
    """Peak resident memory of a whole-model prefill, each in a process of its own."""
    rows = []
    for n in (tokens // 2, tokens):
        row: dict[str, Any] = {"tokens": n}
        for way in ("none", "plain", "ours"):
            command = [sys.executable, __file__, "peak", "--way", way, "--tokens", str(n)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row[f"{way}_mib"] = json.loads(done.stdout)["peak_mib"]
        config = model().config
        numbers = 2 * config.num_hidden_layers * n * HEADS * HEAD_DIM
        row["kv_cache_mib"] = numbers * 4 / 2**20
        row["over_plain_mib"] = row["ours_mib"] - row["plain_mib"]
        row["over_plain_bytes_per_token"] = row["over_plain_mib"] * 2**20 / n
        row["over_plain_of_kv_cache"] = row["over_plain_mib"] / row["kv_cache_mib"]
        row["one_head_n_x_n_mib"] = n * n * 4 / 2**20
        rows.append(row)
    return rows


def peak(way: str, tokens: int) -> dict[str, float]:
    network = model()
    ids = torch.randint(0, 2048, (1, tokens))
    cache = SelfExtendCache(config=network.config, capacity=tokens)
    if way == "plain":
        fill(network, ids, cache)
    elif way == "ours":
        with extended(network, METHOD):
            fill(network, ids, cache)
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["prefill", "decode", "whole", "memory", "peak"])
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", help="of prefill")
    parser.add_argument("--kv-heads", type=int, default=HEADS, help="of prefill")
    parser.add_argument("--head-dim", type=int, default=HEAD_DIM, help="of prefill")
    parser.add_argument("--way", choices=["none", "plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.inference_mode():
        if args.what == "peak":
            print(json.dumps(peak(args.way, args.tokens[0])))
            return
        if args.what == "prefill":
            lengths, dtype = args.tokens or [2048, 4096, 8192], getattr(torch, args.dtype)
            rows = prefill(lengths, args.pairs, args.kv_heads, args.head_dim, dtype)
        elif args.what == "whole":
            rows = whole(args.tokens or [1024, 4096, 16384], args.pairs)
        elif args.what == "decode":
            rows = decode(args.tokens or [8192], args.pairs)
        else:
            rows = memory((args.tokens or [16384])[0])
    method = SHORT if args.what == "whole" else METHOD
    report = {
        "what": args.what,
        "shapes": f"{HEADS} heads of {args.head_dim}, {args.kv_heads} key-value heads, "
        f"{args.dtype}, batch 1, W {method.neighbor_window}, G {method.group_size}",
        "threads": args.threads,
        "machine": f"{platform.processor() or platform.machine()} {platform.system()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rows": rows,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
