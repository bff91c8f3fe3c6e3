"""The plugin for vLLM on a GPU: right first, then timed in pairs with stock vLLM.

    python benchmarks/vllm_gpu.py --out runs/vllm_gpu

One command, under 9 minutes, on any machine with a CUDA device of compute capability 8.0 or later
and vLLM 0.32; no network. Sections:

* kernel: mixed batches over pages against float64, next to the rounding of the type; without vLLM
* engine: greedy answers of the bundled model, eager and with CUDA graphs, against `extended(...)`
* speed: a random model of a Llama 3 8B's shape with fewer layers; the stock engine gets the same
  prompts with the model's window overridden, so its text means nothing. Rounds are paired: both
  engines in turn, in changing order; a ratio is the median of the paired ratios.

``--dry-run`` walks through the kernel on a CPU, tiny, in Triton's interpreter, and through the rest
where vLLM's CPU engine is installed; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DRY = "--dry-run" in sys.argv
if DRY:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is first imported
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from torch import Tensor

from selfextend_rag import SelfExtend, extended
from selfextend_rag.attention import AttentionSpec
from selfextend_rag.attention.paged import Pages
from selfextend_rag.attention.reference import reference_attention
from selfextend_rag.bundled import FOLDER
from selfextend_rag.rope import RotaryLayout

DEVICE = torch.device("cpu" if DRY else "cuda")
LOGPROBS = 1e-3  # float32 on a GPU multiplies matrices in another order than transformers does
CHECKED = 64  # queries of a sequence that are compared
LAYERS = 2 if DRY else 8
SHAPE = (
    {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 32,
     "num_key_value_heads": 1, "vocab_size": 512, "max_position_embeddings": 256}
    if DRY else
    {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "head_dim": 128,
     "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 8192}
)  # fmt: skip
SPEED = SelfExtend(3, 32) if DRY else SelfExtend(8, 1024)
DECODED = 4 if DRY else 128


class Run:
    """Rows of results, and the time that is left."""

    def __init__(self, seconds: float) -> None:
        self.began, self.seconds = time.perf_counter(), seconds
        self.rows: list[dict[str, Any]] = []

    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.began)

    def add(self, what: str, **figures: float | bool) -> None:
        self.rows.append({"what": what, **figures})
        print(what, *(f"{name} {value:.4g}" for name, value in figures.items()), sep="; ")


def kernel(run: Run) -> None:
    mixed = [(1, 60), (20, 50), (5, 9)] if DRY else [(1, 16383), (2048, 8192), (17, 4099), (1, 900)]
    steps = [(1, total) for _, total in mixed]
    for dtype in [torch.float32] if DRY else [torch.bfloat16, torch.float16, torch.float32]:
        for page, sequences in ((16, mixed), (128, mixed), (16, steps)):
            worst = kernel_error(dtype, page, sequences)
            allowed = max(2e-6, 8 * torch.finfo(dtype).eps)
            name = (
                f"kernel, {dtype}, blocks of {page}, {'steps' if sequences is steps else 'mixed'}"
            )
            run.add(name, error=worst, allowed=allowed, right=worst <= allowed)


def kernel_error(dtype: torch.dtype, page: int, sequences: list[tuple[int, int]]) -> float:
    """Return the largest error against float64, of a kv head and the last queries of each."""
    from selfextend_rag.attention.triton.paged import PagedBatch, paged_batch_attention

    heads, kv_heads, dim = (2, 1, 16) if DRY else (32, 8, 128)
    settings = SelfExtend(3, 10) if DRY else SelfExtend(8, 1024)
    rotary = RotaryLayout(tuple(5e5 ** (-2 * i / dim) for i in range(dim // 2)))
    spec = AttentionSpec.of(settings, rotary=rotary, scaling=dim**-0.5)
    make = torch.Generator(DEVICE).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, device=DEVICE).to(dtype)

    keys, values = ([random(1, kv_heads, n, dim) for _, n in sequences] for _ in range(2))
    pages, blocks = stored(keys, values, page, spec)
    lengths, totals = zip(*sequences, strict=True)
    starts = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()
    seen = torch.tensor(totals, device=DEVICE).int()
    q = random(sum(lengths), heads, dim)
    out = torch.full_like(q, torch.nan)
    batch = PagedBatch(blocks, starts, seen, None, max(lengths), max(totals))
    paged_batch_attention(q, pages, batch, spec, out)
    if not bool(out.isfinite().all()):
        return torch.inf
    share, worst = heads // kv_heads, 0.0
    for length, end, k, v in zip(lengths, starts[1:].tolist(), keys, values, strict=True):
        rows = slice(end - min(length, CHECKED), end)
        asked, got = (x[rows, :share].transpose(0, 1)[None].double() for x in (q, out))
        truth = reference_attention(asked, k[:, :1].double(), v[:, :1].double(), spec)
        worst = max(worst, float((got - truth).abs().max()))
    return worst


def stored(
    keys: list[Tensor], values: list[Tensor], page: int, spec: AttentionSpec
) -> tuple[Pages, Tensor]:
    """Return pages of keys at grouped positions, and the blocks of each sequence, in no order."""
    counts = [-(-k.shape[2] // page) for k in keys]
    order = torch.randperm(sum(counts), device=DEVICE).int()
    shape = len(order), keys[0].shape[1], page, 2 * keys[0].shape[3]
    cache = torch.zeros(shape, dtype=keys[0].dtype, device=DEVICE)
    pages = Pages(*cache.split(shape[3] // 2, dim=-1))
    blocks = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=DEVICE)
    for i, (k, v) in enumerate(zip(keys, values, strict=True)):
        blocks[i, : counts[i]] = mine = order[sum(counts[:i]) : sum(counts[: i + 1])]
        at = torch.arange(k.shape[2], device=DEVICE)
        rotated = spec.rotary.rotate(k, spec.own_bands[-1].key_position(at))
        slots = mine[at // page].long() * page + at % page
        pages.store(rotated[0].transpose(0, 1), v[0].transpose(0, 1), slots)
    return pages, blocks


def started(folder: Path, settings: SelfExtend | None, longest: int, **options: Any) -> Any:
    from vllm import LLM

    extra: dict[str, Any] = {"hf_overrides": {"max_position_embeddings": longest}}
    if settings is not None:
        option = {
            "group_size": settings.group_size, "neighbor_window": settings.neighbor_window,
        }  # fmt: skip
        extra = {"additional_config": {"selfextend": option}}
    return LLM(str(folder), skip_tokenizer_init=True, max_model_len=longest, **options, **extra)


def answers(llm: Any, prompts: list[list[int]], tokens: int) -> list[Any]:
    from vllm import SamplingParams

    how = SamplingParams(
        temperature=0, max_tokens=tokens, logprobs=1, detokenize=False, ignore_eos=True
    )
    asked = [{"prompt_token_ids": p} for p in prompts]
    return [one.outputs[0] for one in llm.generate(asked, how, use_tqdm=False)]


@torch.no_grad()
def engine(run: Run) -> None:
    from transformers import AutoModelForCausalLM

    settings = SelfExtend(8, 100)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).to(DEVICE)
    window = model.config.max_position_embeddings
    make = torch.Generator().manual_seed(0)
    lengths = [window // 4, window + 11, 3 * window - 1, 5 * window + 3]
    prompts = [torch.randint(3, 2000, (n,), generator=make).tolist() for n in lengths]
    longest = 6 * window
    for eager in (True, False):
        kind = "eager" if eager else "graphs"
        llm = started(
            FOLDER, settings, longest, dtype="float32", enforce_eager=eager, max_num_seqs=8,
            gpu_memory_utilization=0.3,
        )  # fmt: skip
        for asked, found in zip(prompts * 2, answers(llm, prompts * 2, 24), strict=True):
            error, behind = answer_errors(model, settings, asked, found)
            right = error <= LOGPROBS and behind <= LOGPROBS
            name = f"engine, {kind}, {len(asked)} tokens"
            run.add(name, error=error, behind=behind, allowed=LOGPROBS, right=right)
        llm.llm_engine.engine_core.shutdown()
        del llm


def answer_errors(
    model: Any, settings: SelfExtend, asked: list[int], found: Any
) -> tuple[float, float]:
    """Return how far log-probabilities are from ours, and how far the tokens are from the best."""
    got = list(found.token_ids)
    sequence = torch.tensor([asked + got[:-1]], device=DEVICE)
    fits = len(asked) + len(got) <= model.config.max_position_embeddings
    with contextlib.nullcontext() if fits else extended(model, settings):
        logits = model(sequence).logits
    scores = logits[0, len(asked) - 1 :].log_softmax(-1)
    picked = scores.gather(-1, torch.tensor(got, device=DEVICE)[:, None])[:, 0]
    given = [row[token].logprob for row, token in zip(found.logprobs, got, strict=True)]
    error = (torch.tensor(given, device=DEVICE) - picked).abs().max()
    return float(error), float((scores.max(-1).values - picked).max())


def speed(run: Run) -> None:
    from transformers import LlamaConfig

    window = int(SHAPE["max_position_embeddings"])
    tokens = 2 * window if DRY else 4 * window - 256
    longest = tokens + DECODED + 8
    with tempfile.TemporaryDirectory() as name:
        config = LlamaConfig(**SHAPE, num_hidden_layers=LAYERS, architectures=["LlamaForCausalLM"])
        config.save_pretrained(name)
        engines = {
            kind: started(
                Path(name), settings, longest, load_format="dummy", dtype="bfloat16",
                max_num_seqs=8, max_num_batched_tokens=8192, gpu_memory_utilization=0.42,
                enforce_eager=DRY,
            )
            for kind, settings in (("stock", None), ("plugin", SPEED))
        }  # fmt: skip
    make = torch.Generator().manual_seed(0)
    for batch in (1, 2) if DRY else (1, 8):
        ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
        rates = {kind: {"prefill": [], "decode": []} for kind in engines}
        for number in range(4):  # the first warms up
            if run.left() < 20:
                break
            prompts = [
                torch.randint(3, 500, (tokens,), generator=make).tolist() for _ in range(batch)
            ]
            for kind in sorted(engines, reverse=bool(number % 2)):
                prefill, again, whole = (
                    timed(engines[kind], prompts, n) for n in (1, 1, 1 + DECODED)
                )  # the prompts are in the prefix cache from the second on
                if number:
                    rates[kind]["prefill"].append(batch * tokens / prefill)
                    rates[kind]["decode"].append(batch * DECODED / (whole - again))
        for part, found in ratios.items():
            pairs = zip(rates["plugin"][part], rates["stock"][part], strict=False)
            found += [ours / stock for ours, stock in pairs]
            if found:
                medians = {k: statistics.median(v[part]) for k, v in rates.items()}
                name = f"{part}, {batch} of {tokens} tokens, {LAYERS} layers, tokens per second"
                run.add(name, **medians, ratio=statistics.median(found), rounds=len(found))


def timed(llm: Any, prompts: list[list[int]], tokens: int) -> float:
    begin = time.perf_counter()
    answers(llm, prompts, tokens)
    return time.perf_counter() - begin


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/vllm_gpu"))
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU, interpreted")
    parser.add_argument("--sections", nargs="+", choices=[*SECTIONS], default=[*SECTIONS])
    parser.add_argument("--seconds", type=float, default=500, help="no section starts after this")
    given = parser.parse_args(arguments)
    if not (DRY or torch.cuda.is_available()):
        parser.error("no CUDA device is here; --dry-run walks through on a CPU")
    run, right = Run(given.seconds), True
    has_vllm = importlib.util.find_spec("vllm") is not None
    for name in given.sections:
        if name != "kernel" and not has_vllm:
            print(f"{name}: not run, vLLM is not installed (docs/vllm.md says how)")
        elif not right:
            print(f"{name}: not run, an answer before was wrong")
        elif run.left() < 0:
            print(f"{name}: not run, no time left")
        else:
            SECTIONS[name](run)
            if not DRY:
                torch.cuda.empty_cache()  # the engines have processes of their own
            right = all(row.get("right", True) for row in run.rows)
    given.out.mkdir(parents=True, exist_ok=True)
    gpu = "none: a dry run" if DRY else torch.cuda.get_device_name()
    facts = {
        "gpu": gpu,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - run.began),
    }
    result = {"facts": facts, "rows": run.rows}
    (given.out / "vllm_gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    print(facts, "all answers right" if right else "WRONG ANSWERS")
    return 0 if right else 1


SECTIONS: dict[str, Callable[[Run], None]] = {"kernel": kernel, "engine": engine, "speed": speed}

if __name__ == "__main__":
    sys.exit(main())
