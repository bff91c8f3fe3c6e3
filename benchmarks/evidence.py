"""Does the evidence of an answer hold the fact, and what does it cost? On the bundled model, CPU.

    python benchmarks/evidence.py [--lookups 200] [--facts 100] [--pairs 15] [--out FOLDER]

Lookups: a pass key in a document of 4, 8 or 16 windows of prose that the model was not trained on.
Facts: the same with one of five facts in many wordings. Counted is whether the first passage holds
the value where it occurs. What the model answered wrongly is counted apart: its evidence should
lead to where its words came from, not to the fact it missed.

Cost: one reading of 16,384 tokens, asked with and without evidence in turns; the median over pairs
of the time of an answer, from asking to its end.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from pathlib import Path

import torch
import transformers

from selfextend_rag import Document, LongContextLLM
from selfextend_rag.evals.metrics import is_exact_match
from selfextend_rag.evals.prose import Prose, king_james
from selfextend_rag.evals.tasks import lookup_task, passkey_task

TIMES = (4, 8, 16)
COST_TOKENS = 16384
KINDS = {"pass keys": passkey_task, "facts": lookup_task}


def as_text(tokenizer, task):
    """The document of a task and the place of its statement, as text."""
    whole = tokenizer.decode(task.prompt_ids, skip_special_tokens=True)
    text = whole[: whole.rindex("\n\nQuestion:")].strip()
    return text, text.index(task.statement)


def one_lookup(llm, task):
    """What one lookup gave: right or not, and what its first passage holds."""
    text, start = as_text(llm.tokenizer, task)
    reading = llm.read(Document.from_text(text))
    answer = reading.ask(task.question)
    best = answer.evidence[0]
    end = start + len(task.statement)
    shared = text[max(best.start, start) : min(best.end, end)]
    given = answer.text.strip()
    return {
        "right": is_exact_match(answer.text, task.answer),
        "fact": re.search(rf"\b{re.escape(task.answer)}\b", shared) is not None,
        "answer_given": bool(given) and given in best.text,
        "characters": best.end - best.start,
        "score": best.score,
    }


def counted(found):
    """Figures of some lookups."""
    if not found:
        return {"lookups": 0}
    return {
        "lookups": len(found),
        "fact_in_first_passage": sum(one["fact"] for one in found),
        "given_answer_in_first_passage": sum(one["answer_given"] for one in found),
        "median_characters": statistics.median(one["characters"] for one in found),
        "median_score": round(statistics.median(one["score"] for one in found), 3),
    }


def lookups(llm, prose, kind, total):
    """Run all lookups of a kind and count them by length and whether the answer was right."""
    window = llm.planner.pretraining_window
    cells, all_found = [], []
    for place, times in enumerate(TIMES):
        count = total * (place + 1) // len(TIMES) - total * place // len(TIMES)
        found = []
        for number in range(count):
            task = KINDS[kind](
                llm.tokenizer, prose, length=window * times,
                depth=(number + 0.5) / count, seed=70_000 + 1000 * times + number,
            )  # fmt: skip
            found.append(one_lookup(llm, task))
        cells.append({"windows": times, **by_answer(found)})
        print(kind, cells[-1], flush=True)
        all_found += found
    return {**by_answer(all_found), "cells": cells}


def by_answer(found):
    """The figures of rightly and of wrongly answered ones."""
    return {
        "right": counted([one for one in found if one["right"]]),
        "wrong": counted([one for one in found if not one["right"]]),
    }


def cost(llm, prose, pairs):
    """Time answers to one reading with and without evidence, in turns."""
    task = passkey_task(llm.tokenizer, prose, length=COST_TOKENS, depth=0.4, seed=7)
    text, _ = as_text(llm.tokenizer, task)
    reading = llm.read(Document.from_text(text))
    results = []
    for tokens in (None, 32):  # its own short answer, and a longer one
        options = {} if tokens is None else {"max_new_tokens": tokens, "stop_token_ids": ()}
        options |= {} if tokens is None else {"stop": ()}
        seconds = {True: [], False: []}
        for pair in range(pairs + 1):
            for evidence in (pair % 2 == 0, pair % 2 == 1):
                started = time.perf_counter()
                answer = reading.ask(task.question, evidence=evidence, **options)
                seconds[evidence].append(time.perf_counter() - started)
        ratios = [a / b for a, b in zip(seconds[True][1:], seconds[False][1:], strict=True)]
        results.append(
            {
                "tokens": reading.plan.prompt_tokens,
                "answer_tokens": answer.usage.completion_tokens,
                "seconds_without": round(statistics.median(seconds[False][1:]), 4),
                "seconds_with": round(statistics.median(seconds[True][1:]), 4),
                "ratio": round(statistics.median(ratios), 4),
            }
        )
        print(results[-1], flush=True)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lookups", type=int, default=200)
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder for evidence.json")
    args = parser.parse_args()
    llm = LongContextLLM.bundled(max_group_size=128)  # for the 16,384 tokens
    prose = Prose.tokenize(king_james(), llm.tokenizer)
    started = time.perf_counter()
    report = {
        "command": "python benchmarks/evidence.py",
        "model": "bundled",
        "window": llm.planner.pretraining_window,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "cost": cost(llm, prose, args.pairs),
        "lookups": lookups(llm, prose, "pass keys", args.lookups),
        "facts": lookups(llm, prose, "facts", args.facts),
        "seconds": 0.0,
    }
    report["seconds"] = round(time.perf_counter() - started, 1)
    if args.out is not None:
        (args.out / "evidence.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
