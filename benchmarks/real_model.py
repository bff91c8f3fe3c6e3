"""Read a document longer than a real model's window, plain and extended, and compare.

    python benchmarks/real_model.py --model FOLDER --document FILE --tokens 44000 \
        --group-size 4 --neighbor-window 4096

Prints the negative log-likelihood per token of chunks of the document by position, and which of the
pass keys, written into the document at five depths, the model gives back when asked at the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import resource
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfextend_rag import SelfExtend, extend, restore
from selfextend_rag.cache import SelfExtendCache

NAMES = ("gate", "tower", "cellar", "garden", "bridge")
FACT = " The pass key of the {name} is {key}. Remember it: the pass key of the {name} is {key}.\n"
QUESTION = "\n\nThe pass key of the {name} is"


def document(tokenizer: Any, text: str, tokens: int, seed: int) -> tuple[list[int], dict[str, str]]:
    """Return ids of ``tokens`` tokens of ``text`` with the pass keys in it, and the keys."""
    draw = random.Random(seed)
    keys = {name: str(draw.randrange(10_000, 100_000)) for name in NAMES}
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prose = tokenizer(text, add_special_tokens=False).input_ids
    facts = [
        tokenizer(FACT.format(name=name, key=key), add_special_tokens=False).input_ids
        for name, key in keys.items()
    ]
    space = tokens - len(start) - sum(map(len, facts))
    if len(prose) < space:
        raise SystemExit(f"the document has {len(prose)} tokens, {space} are needed")
    ids, done = start, 0
    for i, fact in enumerate(facts):
        there = int(space * (0.1 + 0.2 * i))
        ids, done = ids + prose[done:there] + fact, there
    return ids + prose[done:space], keys


def read(model: Any, ids: list[int], chunk: int) -> tuple[Any, list[dict[str, float]]]:
    """Prefill in chunks; return the cache and the loss of each chunk's tokens by position."""
    cache = SelfExtendCache(config=model.config, capacity=len(ids) + 64)
    rows, last = [], None
    for begin in range(0, len(ids), chunk):
        part = torch.tensor([ids[begin : begin + chunk]])
        hidden = model.get_decoder()(part, past_key_values=cache, use_cache=True)[0][0]
        states = hidden if last is None else torch.cat([last, hidden])
        targets = part[0] if last is not None else part[0, 1:]
        losses = []
        for some, wanted in zip(states[:-1].split(256), targets.split(256), strict=True):
            logits = model.get_output_embeddings()(some).float()
            losses.append(F.cross_entropy(logits, wanted, reduction="none"))
        nll = float(torch.cat(losses).mean())
        rows.append({"from": begin, "to": begin + part.shape[1], "nll": round(nll, 3)})
        last = hidden[-1:]
    return cache, rows


def ask(model: Any, tokenizer: Any, cache: Any, name: str, length: int) -> str:
    """Return the model's greedy continuation of the question, leaving the cache as it was."""
    for layer in cache.layers:
        if hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()
    ids = tokenizer(QUESTION.format(name=name), add_special_tokens=False).input_ids
    given, said = torch.tensor([ids]), []
    for _ in range(12):
        logits = model(given, past_key_values=cache, logits_to_keep=1).logits[0, -1]
        said.append(int(logits.argmax()))
        given = torch.tensor([[said[-1]]])
    cache.crop(length - cache.get_seq_length(len(cache.layers) - 1))
    return tokenizer.decode(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--document", type=Path, required=True, help="text file")
    parser.add_argument("--tokens", type=int, default=44_000)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--neighbor-window", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    model.eval()
    ids, keys = document(tokenizer, args.document.read_text("utf-8"), args.tokens, args.seed)
    report: dict[str, Any] = {
        "model": Path(args.model).name, "document": args.document.name, "tokens": len(ids),
        "settings": f"G {args.group_size}, W {args.neighbor_window}", "dtype": args.dtype,
        "threads": args.threads, "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip
    for way in ("plain", "extended"):
        if way == "extended":
            extend(model, SelfExtend(args.group_size, args.neighbor_window))
        begin = time.perf_counter()
        with torch.inference_mode():
            cache, rows = read(model, ids, args.chunk)
            seconds = time.perf_counter() - begin
            answers = {name: ask(model, tokenizer, cache, name, len(ids)) for name in keys}
        right = [name for name in keys if re.findall(r"\d+", answers[name])[:1] == [keys[name]]]
        report[way] = {
            "seconds": round(seconds, 1), "cache_mib": round(cache.nbytes / 2**20, 1),
            "keys_right": len(right), "answers": answers, "nll": rows,
        }  # fmt: skip
    restore(model)
    report["keys"] = keys
    report["peak_memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    text = json.dumps(report, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
