"""Time the plugin for vLLM next to stock vLLM, in CPU seconds, on the bundled model.

    python benchmarks/vllm_cpu.py --tokens 8000
    python benchmarks/vllm_cpu.py --tokens 8000 --dtype bfloat16

The stock engine gets the same prompt with the model's window overridden, so its text means nothing;
it is there for its speed. Rounds are paired: both engines in turn, in changing order.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
import vllm
from vllm import LLM, SamplingParams

from selfextend_rag.bundled import FOLDER

DECODED = 40
GROUP_SIZE, NEIGHBOR_WINDOW = 32, 128


def engine(kind: str, tokens: int, dtype: str) -> LLM:
    longest = tokens + DECODED + 8
    extra = {"hf_overrides": {"max_position_embeddings": longest}}
    if kind == "plugin":
        option = {"group_size": GROUP_SIZE, "neighbor_window": NEIGHBOR_WINDOW}
        extra = {"additional_config": {"selfextend": option}}
    return LLM(
        str(FOLDER), skip_tokenizer_init=True, dtype=dtype, enforce_eager=True,
        max_num_batched_tokens=2048, max_num_seqs=2, max_model_len=longest, **extra,
    )  # fmt: skip


def seconds(llm: LLM, prompt: list[int], tokens: int) -> float:
    how = SamplingParams(temperature=0, max_tokens=tokens, detokenize=False, ignore_eos=True)
    begin = time.process_time()
    llm.generate([{"prompt_token_ids": prompt}], how, use_tqdm=False)
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    given = parser.parse_args()
    engines = {kind: engine(kind, given.tokens, given.dtype) for kind in ("stock", "plugin")}
    make = torch.Generator().manual_seed(0)
    rates: dict[str, dict[str, list[float]]] = {k: {"prefill": [], "decode": []} for k in engines}
    for number in range(given.rounds):
        prompt = torch.randint(3, 2000, (given.tokens,), generator=make).tolist()
        for kind in sorted(engines, reverse=bool(number % 2)):
            prefill = seconds(engines[kind], prompt, 1)
            # the prompt is in the prefix cache now: what is more is decode
            short, long = (seconds(engines[kind], prompt, n) for n in (1, 1 + DECODED))
            rates[kind]["prefill"].append(given.tokens / prefill)
            rates[kind]["decode"].append(DECODED / (long - short))
    print(
        f"bundled model, {given.dtype}, {given.tokens} tokens, G {GROUP_SIZE}, "
        f"W {NEIGHBOR_WINDOW}, vLLM {vllm.__version__}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    for part in ("prefill", "decode"):
        ratios = [a / b for a, b in zip(rates["plugin"][part], rates["stock"][part], strict=True)]
        figures = ", ".join(f"{k} {statistics.median(v[part]):.1f}" for k, v in rates.items())
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{part}: tokens per CPU second {figures}; ratio {ratio}")


if __name__ == "__main__":
    main()
