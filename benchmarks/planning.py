"""How long planning takes, and how the stated bound of memory compares with a process's own.

    python benchmarks/planning.py time
    python benchmarks/planning.py memory

``--json FILE`` writes what is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from selfextend_rag.errors import ContextBudgetExceeded
from selfextend_rag.planning import ContextBudgetPlanner, DeviceMemory, MemoryBudget, ModelMemory
from selfextend_rag.planning.memory import DeviceShare

DOCUMENTS, REPEATS = 1000, 21
PREFILLS = [(4096, 2048, False), (8192, 512, False), (8192, 2048, True), (16_384, 1024, True)]
LLAMA_8B = {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14_336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
}  # fmt: skip
LLAMA_70B = {
    **LLAMA_8B, "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28_672,
    "num_attention_heads": 64,
}  # fmt: skip


def measured(values: dict[str, int]) -> tuple[ModelMemory, dict]:
    """A model's memory, and the time that its copy without weights takes to be built and run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from selfextend_rag.model.footprint import layer_shapes, work_shape

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**values))
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        layers = layer_shapes(model)
        times.append(time.perf_counter() - begin)
    share = DeviceShare("cuda:0", 16 << 30, tuple(range(len(layers))))
    work = work_shape(model.config, layers, itemsize=2, on_cpu=False)
    row = {
        "what": "measure",
        "layers": len(layers),
        "median_ms": 1000 * statistics.median(times),
        "most_ms": 1000 * max(times),
    }
    return ModelMemory(layers, 2, work, (share,)), row


def planning_times() -> list[dict]:
    """A thousand documents with known token counts: one plan, a refusal, and groups."""
    model, first = measured(LLAMA_8B)
    rows = [first, measured(LLAMA_70B)[1]]
    memory = MemoryBudget(model, (DeviceMemory("cuda:0", 80 << 30, 80 << 30),))
    planner = ContextBudgetPlanner(8192)
    rng = random.Random(0)
    for name, low, high in (("short", 20, 120), ("mixed", 100, 4000), ("long", 2000, 9000)):
        sizes = [rng.randint(low, high) for _ in range(DOCUMENTS)]
        named = [(str(index), size) for index, size in enumerate(sizes)]

        def one(sizes=sizes, named=named):
            try:
                planner.plan(sum(sizes), 256, reserve_tokens=512, memory=memory, documents=named)
            except ContextBudgetExceeded as error:
                return f"refused: {error.excess} tokens too many"
            return "planned"

        def groups(sizes=sizes):
            found = planner.plan_groups(sizes, 256, reserve_tokens=512, memory=memory)
            return f"{len(found.groups)} groups, at least {found.lower_bound}"

        for what, run in (("plan", one), ("plan_groups", groups)):
            times = []
            for _ in range(REPEATS):
                begin = time.perf_counter()
                outcome = run()
                times.append(time.perf_counter() - begin)
            rows.append(
                {
                    "documents": name,
                    "tokens": sum(sizes),
                    "what": what,
                    "median_ms": 1000 * statistics.median(times),
                    "most_ms": 1000 * max(times),
                    "outcome": outcome,
                }
            )
    return rows


def peaks() -> list[dict]:
    """The growth of a process's peak memory over a reading and an answer, next to the bound."""
    rows = []
    for prompt, chunk, extended in PREFILLS:
        command = [sys.executable, __file__, "one", str(prompt), str(chunk), str(int(extended))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
    return rows


def one_peak(prompt: int, chunk: int, extend: bool) -> dict:
    """Read and answer in this process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from selfextend_rag import SelfExtend
    from selfextend_rag.engine import Engine, GenerationSettings
    from selfextend_rag.llm.memory import memory_of_model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=4096,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    settings = SelfExtend(8, 512) if extend else None
    engine = Engine(model, chunk_size=chunk)
    tokens = torch.randint(0, 8192, (prompt,)).tolist()
    engine.prefill(tokens[:32], settings=settings)  # what is loaded and measured once
    later = 32
    stated = memory_of_model(model).estimate(prompt, later, settings, chunk)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    prefix = engine.prefill(tokens, settings=settings, capacity=prompt + later)
    asked = (*tokens, 5, 6, 7)
    list(engine.generate(asked, GenerationSettings(max_new_tokens=later - 3), prefix=prefix))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    bound = stated.needed_bytes - stated.weights_bytes
    return {
        "tokens": prompt,
        "chunk_size": chunk,
        "extended": extend,
        "grown_mib": grown / 2**20,
        "bound_mib": bound / 2**20,
        "cache_mib": prefix.cache.nbytes / 2**20,
        "stated_cache_mib": (stated.kv_cache_bytes + stated.grouped_keys_bytes) / 2**20,
        "grown_of_bound": grown / bound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("time", "memory", "one"))
    parser.add_argument("figures", nargs="*", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.what == "one":
        prompt, chunk, extend = args.figures
        print(json.dumps(one_peak(prompt, chunk, bool(extend))))
        return
    rows = planning_times() if args.what == "time" else peaks()
    report = {
        "what": args.what,
        "machine": f"{platform.machine()} {platform.system()}",
        "python": platform.python_version(),
        "rows": rows,
    }
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
