"""Plain attention, SelfExtend, other maps of positions, static NTK and YaRN on one model.

    python benchmarks/methods.py --samples 40
    python benchmarks/methods.py --table

Exact answers to pass keys and lookups, and perplexity of prose, by length. Every method answers the
same prompts, greedily, with the same space for answers. Maps have their authors' settings in
proportion to the window (``selfextend_rag.planning.published_map``), SelfExtend the planner's, NTK
and YaRN the factor that the length needs. Nothing is tuned on these tasks.

Rows are appended to a file, one a sample, under a fingerprint of model and tokenizer. A run that is
started again continues it, and another model begins its own rows in the same file. Samples are
taken in turns, so that all cells have as many, save one, whenever it is broken off. ``--table``
prints what the file holds of the model that was measured last, as docs/methods.md shows it; only
samples that all methods have count.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfextend_rag.bundled import FOLDER
from selfextend_rag.evals.access import HuggingFaceModel
from selfextend_rag.evals.benchmarks.items import mean_score
from selfextend_rag.evals.methods import LoadedModel
from selfextend_rag.evals.metrics import is_exact_match
from selfextend_rag.evals.prose import Prose, king_james, leading_tokens
from selfextend_rag.evals.runner import MAX_NEW_TOKENS, TASKS
from selfextend_rag.evals.suite.bootstrap import interval as bootstrap_interval
from selfextend_rag.llm.loading.model import load_model
from selfextend_rag.llm.loading.sources import load_tokenizer
from selfextend_rag.maps import MAPS, map_to_dict
from selfextend_rag.model.rescaled import RopeScaling, rescaled
from selfextend_rag.planning import ContextBudgetPlanner, planner_defaults, published_map
from selfextend_rag.positions import PositionMap

METHODS = ("plain", "selfextend", *MAPS, "ntk", "yarn")
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "methods.jsonl"
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
Row = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--model", default=str(FOLDER), help="hub id or folder; the bundled model")
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    made.add_argument("--tasks", nargs="+", default=["passkey", "lookup", "perplexity"])
    made.add_argument("--window", type=int, help="P; what the configuration says by default")
    made.add_argument("--dtype", default="auto", help="auto is as the weights are stored")
    made.add_argument("--times", type=int, nargs="+", default=[1, 2, 4, 8], help="windows")
    made.add_argument("--samples", type=int, default=40, help="in each cell")
    made.add_argument("--texts", type=int, default=8, help="of prose in each cell, of the samples")
    made.add_argument("--out", type=Path, default=RESULTS)
    made.add_argument("--table", action="store_true", help="print what the file holds, and end")
    return made


def settings_for(
    method: str, model: PreTrainedModel, window: int, total: int
) -> tuple[PositionMap | None, RopeScaling | None]:
    """Return a map, or a scaling, for so many tokens.

    Raises:
        ValueError: the map does not reach them.
    """
    if method == "plain" or total <= window:
        return None, None
    if method in ("ntk", "yarn"):
        kind: Any = method
        return None, RopeScaling(kind, total / window, window)
    if method == "selfextend":
        planner = ContextBudgetPlanner(window, **planner_defaults(model.config, window, None))
        return planner.plan(total - MAX_NEW_TOKENS, MAX_NEW_TOKENS).settings, None
    found = published_map(method, window, total)
    reached = found.extended_window(window)
    if reached < total:
        raise ValueError(f"reaches {reached} tokens")
    return found, None


def cells(args: argparse.Namespace, done: set[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yield what is still to be run, samples in turns."""
    for sample in range(args.samples):
        for times in args.times:
            for task in args.tasks:
                if task == "perplexity" and sample >= args.texts:
                    continue
                for method in args.methods:
                    if (task, times, method, sample) not in done:
                        yield task, times, method, sample


def measured(
    adapter: HuggingFaceModel,
    tokenizer: PreTrainedTokenizerBase,
    prose: Prose,
    task: str,
    length: int,
    sample: int,
) -> Row:
    """Return what one sample gave: whether it was right, or the likelihood of a text."""
    if task == "perplexity":
        head = leading_tokens(tokenizer)
        tokens, _ = prose.run(length + MAX_NEW_TOKENS - len(head), place(sample))
        nlls = adapter.token_nll([*head, *tokens])
        return {"nll": math.fsum(nlls), "tokens": len(nlls)}
    depth = DEPTHS[sample % len(DEPTHS)]
    question = TASKS[task](tokenizer, prose, length=length, depth=depth, seed=7000 + sample)
    new = adapter.generate(question.prompt_ids, MAX_NEW_TOKENS)
    text = str(tokenizer.decode(new, skip_special_tokens=True))
    return {"right": is_exact_match(text, question.answer), "text": text, "gold": question.answer}


def place(sample: int) -> float:
    """Return where the text of a sample begins, from 0 to 1; more samples fill the gaps."""
    digits = f"{sample:b}"[::-1]
    return int(digits, 2) / 2 ** len(digits)


def run(args: argparse.Namespace) -> None:
    """Append a row for each sample that the file does not have yet."""
    model, tokenizer = load_model(args.model, dtype=args.dtype), load_tokenizer(args.model)
    loaded = LoadedModel(args.model, model, tokenizer, args.window or 0)
    window = loaded.window
    prose = Prose.tokenize(king_james(), tokenizer)
    where = {
        "model": Path(args.model).name, "weights": loaded.fingerprint, "window": window,
        "dtype": str(model.dtype), "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    done = {
        (row["task"], row["times"], row["method"], row["sample"])
        for row in read(args.out)
        if row["weights"] == where["weights"]
    }
    print(json.dumps(where), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        for task, times, method, sample in cells(args, done):
            length = window * times
            row: Row = {"task": task, "times": times, "method": method, "sample": sample, **where}
            started = time.process_time()
            try:
                found, scaling = settings_for(method, model, window, length + MAX_NEW_TOKENS)
            except ValueError as error:
                row["refused"] = str(error)
            else:
                block: AbstractContextManager[object] = (
                    rescaled(model, scaling) if scaling else nullcontext()
                )
                with block:
                    adapter = HuggingFaceModel(model, found)
                    row |= measured(adapter, tokenizer, prose, task, length, sample)
                row["settings"] = map_to_dict(found) if found else scaling and scaling.factor
            row["cpu_seconds"] = round(time.process_time() - started, 3)
            file.write(json.dumps(row) + "\n")
            file.flush()


def read(path: Path) -> list[Row]:
    """Return the rows of a file; a last line that was broken off is left out."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").split("\n")
    if lines[-1]:  # of a run that was killed while it wrote
        path.write_text("".join(line + "\n" for line in lines[:-1]), "utf-8")
    return [json.loads(line) for line in lines[:-1]]


def interval(right: int, samples: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z, share = 1.96, right / samples
    middle = share + z * z / (2 * samples)
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    return tuple((middle + sign * half) / (1 + z * z / samples) for sign in (-1, 1))  # type: ignore[return-value]  # two of them


def cell(task: str, rows: list[Row], base: list[Row]) -> str:
    """Return what a cell of the table says: the share that is right, or perplexity.

    Args:
        task: what was asked.
        rows: of a method.
        base: SelfExtend's of the same samples, which texts are compared with; may be empty.
    """
    if not rows:
        return ""
    if any("refused" in row for row in rows):
        return "-"
    if task == "perplexity":
        found = f"{math.exp(sum(r['nll'] for r in rows) / sum(r['tokens'] for r in rows)):.1f}"
        return f"{found}{_difference(rows, base)}"
    right = sum(row["right"] for row in rows)
    low, high = interval(right, len(rows))
    return f"{right}/{len(rows)} ({low:.2f}-{high:.2f})"


def _difference(rows: list[Row], base: list[Row]) -> str:
    """Return the interval of the difference to SelfExtend in nats a token, of the same texts."""
    each = {row["sample"]: row["nll"] / row["tokens"] for row in base}
    pairs = {
        str(row["sample"]): [{"score": row["nll"] / row["tokens"] - each[row["sample"]]}]
        for row in rows
        if row["sample"] in each
    }
    bounds = bootstrap_interval(pairs, mean_score) if rows and rows is not base else None
    return "" if bounds is None else f" ({bounds[0]:+.3f} to {bounds[1]:+.3f})"


def latest(rows: list[Row]) -> list[Row]:
    """Return the rows of the model that was measured last."""
    return [row for row in rows if row["weights"] == rows[-1]["weights"]]


def common(rows: list[Row]) -> list[Row]:
    """Return the rows of the samples that all methods have which have any in the same column."""
    have: dict[tuple[Any, ...], dict[str, set[int]]] = {}
    for row in rows:
        column = have.setdefault((row["task"], row["times"]), {})
        column.setdefault(row["method"], set()).add(row["sample"])
    shared = {column: set.intersection(*found.values()) for column, found in have.items()}
    return [row for row in rows if row["sample"] in shared[row["task"], row["times"]]]


def about(row: Row) -> str:
    """Return which model a row is of."""
    named = f"Model `{row['model']}` (fingerprint `{row['weights']}`)"
    return f"{named}, a window of {row['window']} tokens, {row['dtype'].removeprefix('torch.')}."


def tables(rows: list[Row]) -> str:
    """Return which model was the latest, and a table of it in Markdown for each task."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    rows = common(latest(rows))
    for row in rows:
        groups.setdefault((row["task"], row["method"], row["times"]), []).append(row)
    found = [about(rows[-1])] if rows else []
    for task in dict.fromkeys(row["task"] for row in rows):
        times = sorted({row["times"] for row in rows if row["task"] == task})
        title = "perplexity" if task == "perplexity" else f"{task}: exact answers"
        lines = [f"### {title}", "", _line("method", *(f"{n} x P" for n in times))]
        lines.append("| --- |" + " --- |" * len(times))
        for method in METHODS:
            if any((task, method, n) in groups for n in times):
                values = [
                    cell(task, *(groups.get((task, x, n), []) for x in (method, "selfextend")))
                    for n in times
                ]
                lines.append(_line(method, *values))
        found.append("\n".join(lines))
    return "\n\n".join(found)


def _line(*values: str) -> str:
    return "| " + " | ".join(values) + " |"


def main() -> None:
    """Measure, or print the tables of what was measured."""
    args = parser().parse_args()
    if not args.table:
        run(args)
    print(tables(read(args.out)))


if __name__ == "__main__":
    main()
