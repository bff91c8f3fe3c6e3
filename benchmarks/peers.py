"""Reading and answering on one CPU thread, next to what a user would take instead, same weights.

    python benchmarks/peers.py --model FOLDER [--gguf FILE ... --llama PYTHON] [--tokens 8192]
        [--ways NAME ...] [--json FILE] [--plot FILE]

Each way runs in a process of its own. Times are CPU seconds, so that a shared machine changes them
less: of a process with one busy thread they are the seconds it works. ``--llama`` is the Python of
an environment with ``xllamacpp``, which is llama.cpp as a wheel: ``python -m venv peers``,
``peers/bin/pip install xllamacpp``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ANSWER = 24  # tokens
WAYS = {
    "this package, float32": ("ours", "float32", None),
    "this package, bfloat16": ("ours", "bfloat16", None),
    "this package, weight_bits=8": ("ours", "float32", 8),
    "this package, weight_bits=8, bfloat16": ("ours", "bfloat16", 8),
    "this package, weight_bits=4": ("ours", "bfloat16", 4),
    "transformers, float32": ("transformers", "float32", None),
    "transformers, bfloat16": ("transformers", "bfloat16", None),
}


def prompt(tokenizer: Any, tokens: int) -> list[int]:
    """Return so many ids of English prose."""
    text = (ROOT / "examples/documents/genesis.txt").read_text("utf-8")
    ids: list[int] = tokenizer(text).input_ids
    while len(ids) < tokens:
        ids += ids[1:]
    return ids[:tokens]


def ours(model: str, dtype: str, bits: int | None, tokens: int) -> dict[str, float]:
    import torch

    from selfextend_rag import GenerationSettings, LongContextLLM

    torch.set_num_threads(1)
    llm = LongContextLLM.from_pretrained(model, dtype=dtype, weight_bits=bits)
    ids = prompt(llm.tokenizer, tokens)
    llm.engine.prefill(ids[:64])  # the first run of a model looks at it
    begin = time.process_time()
    prefix = llm.engine.prefill(ids[:-1], capacity=tokens + ANSWER)
    read = time.process_time() - begin
    options = GenerationSettings(max_new_tokens=ANSWER, stop_token_ids=())
    times = [time.process_time()]
    for _ in llm.engine.generate(ids, options, prefix=prefix):
        times.append(time.process_time())
    return figures(tokens, read, times)


def stock(model: str, dtype: str, _: int | None, tokens: int) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    torch.set_num_threads(1)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    ids = prompt(AutoTokenizer.from_pretrained(model), tokens)
    cache = DynamicCache(config=network.config)
    with torch.inference_mode():
        network(torch.tensor([ids[:64]]), logits_to_keep=1)
        begin = time.process_time()
        for start in range(0, tokens - 1, 2048):
            part = torch.tensor([ids[start : min(start + 2048, tokens - 1)]])
            network(part, past_key_values=cache, logits_to_keep=1)
        read = time.process_time() - begin
        token, times = torch.tensor([ids[-1:]]), [time.process_time()]
        for _ in range(ANSWER):
            logits = network(token, past_key_values=cache).logits
            token = logits[:, -1:].argmax(-1)
            times.append(time.process_time())
    return figures(tokens, read, times)


def llama(model: str, tokens: int, ids: list[int]) -> dict[str, float]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.n_gpu_layers = tokens + 2 * ANSWER, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = True
    server = xllamacpp.Server(params)
    spent = []
    for count in (1, 1 + ANSWER):  # the second finds the prompt in the cache
        asked = {"prompt": ids, "n_predict": count, "temperature": 0, "cache_prompt": True}
        begin = time.process_time()
        answer = server.handle_completions({**asked, "ignore_eos": True})
        spent.append(time.process_time() - begin)
        if isinstance(answer, dict) and answer.get("code"):
            raise SystemExit(str(answer))
    return {"read_tokens_a_second": tokens / spent[0], "answer_tokens_a_second": ANSWER / spent[1]}


def figures(tokens: int, read: float, times: list[float]) -> dict[str, float]:
    steps = [after - before for before, after in itertools.pairwise(times)]
    return {
        "read_tokens_a_second": tokens / read,
        "answer_tokens_a_second": 1 / statistics.median(steps[1:]),
    }


def measured(python: str, *arguments: str) -> dict[str, float]:
    command = [python, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    from selfextend_rag.evals.plots import pyplot

    plt = pyplot()
    figure, sides = plt.subplots(1, 2, figsize=(9, 0.5 + 0.45 * len(rows)), sharey=True)
    names = [row["way"] for row in rows][::-1]
    for side, what in zip(sides, ("read", "answer"), strict=True):
        values = [row[f"{what}_tokens_a_second"] for row in rows][::-1]
        colours = ["#2a6f97" if "package" in name else "#adb5bd" for name in names]
        bars = side.barh(names, values, color=colours)
        side.bar_label(bars, fmt="%.3g", padding=3)
        side.set_title(f"{'reading' if what == 'read' else 'answering'}, tokens a second")
        side.spines[["top", "right"]].set_visible(False)
        side.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure every way in turn, and print medians over the rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or hub id, for all but llama.cpp")
    parser.add_argument("--gguf", nargs="+", default=[], help="the same model, for llama.cpp")
    parser.add_argument("--llama", help="Python of an environment with xllamacpp")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--ids", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way == "llama":
        print(json.dumps(llama(args.model, args.tokens, json.loads(args.ids.read_text()))))
        return
    if args.way:
        kind, dtype, bits = WAYS[args.way]
        run = ours if kind == "ours" else stock
        print(json.dumps(run(args.model, dtype, bits, args.tokens)))
        return
    report = compared(args)
    text = json.dumps(report, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", "utf-8")
    if args.plot:
        plot(report["rows"], args.plot)


def compared(args: argparse.Namespace) -> dict[str, Any]:
    import tempfile

    import torch
    import transformers

    found: dict[str, list[dict[str, float]]] = {}
    tokens = str(args.tokens)
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.json"
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
        ids.write_text(json.dumps(prompt(tokenizer, args.tokens)))
        for _ in range(args.rounds):
            for way in args.ways:
                options = ("--model", args.model, "--tokens", tokens, "--way", way)
                found.setdefault(way, []).append(measured(sys.executable, *options))
                print(way, found[way][-1], file=sys.stderr, flush=True)
            for file in args.gguf if args.llama else ():
                way = f"llama.cpp, {Path(file).stem}"
                options = ("--model", file, "--tokens", tokens, "--way", "llama")
                made = measured(args.llama, *options, "--ids", str(ids))
                found.setdefault(way, []).append(made)
    rows = [
        {"way": way, **{name: statistics.median(x[name] for x in runs) for name in runs[0]}}
        for way, runs in found.items()
    ]
    return {
        "model": Path(args.model).name, "tokens": args.tokens, "rounds": args.rounds,
        "threads": 1, "seconds": "of CPU time", "processor": platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rows": rows,
    }  # fmt: skip


if __name__ == "__main__":
    main()
