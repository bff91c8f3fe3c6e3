"""``python -m selfextend_rag.evals``: passkey, lookup and perplexity, plain and extended."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfextend_rag.bundled import FOLDER
from selfextend_rag.bundled import NAME as BUNDLED
from selfextend_rag.evals.access import HuggingFaceModel
from selfextend_rag.evals.plots import heat_maps, nll_curves
from selfextend_rag.evals.prose import Prose, king_james, leading_tokens
from selfextend_rag.evals.runner import (
    MAX_NEW_TOKENS,
    TASKS,
    Cell,
    PerplexityRow,
    depths,
    run_lookups,
    run_perplexity,
)
from selfextend_rag.planning import ContextBudgetPlanner, pretraining_window_of
from selfextend_rag.positions import SelfExtend


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of the evaluation's arguments."""
    parser = argparse.ArgumentParser(prog=program, description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("task", choices=(*TASKS, "perplexity"), help="what to measure")
    parser.add_argument("--model", help="hub id or folder; the bundled model by default")
    parser.add_argument(
        "--lengths", type=int, nargs="+", help="tokens; 1, 2, 4, 8, 16 windows by default"
    )
    parser.add_argument("--depths", type=int, default=10, help="places of the fact")
    parser.add_argument("--samples", type=int, default=20, help="documents in each cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--neighbor-window", type=int, help="W; a quarter of the window by default")
    parser.add_argument(
        "--group-size", type=int, help="G, also inside the window; by default what a length needs"
    )
    parser.add_argument(
        "--trained-fraction", type=float, default=2 / 3, help="share of the window to use"
    )
    parser.add_argument(
        "--only", choices=("plain", "selfextend"), help="leave out the other of the two"
    )
    parser.add_argument(
        "--kv-bits", type=int, choices=(8, 4), help="keep keys and values in so many bits"
    )
    parser.add_argument("--prose", type=Path, help="text file; King James Bible by default")
    parser.add_argument("--bin-size", type=int, default=64, help="positions in a perplexity bin")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--out", type=Path, help="folder for results.json and the picture")
    parser.add_argument("--no-plot", action="store_true", help="write no picture")
    return parser


def run(args: argparse.Namespace, write: Callable[[str], object]) -> int:
    """Measure, write a line for each result, and files if asked; return the exit code."""
    _check(args)
    model, tokenizer = load(args.model, args.device)
    window = pretraining_window_of(model.config)
    text = args.prose.read_text("utf-8") if args.prose else king_james()
    prose = Prose.tokenize(text, tokenizer)
    title = f"{args.task}, {args.model or 'bundled'}, window of {window} tokens"
    started = time.monotonic()
    adapters = {
        label: _adapters(args, label, model, window)
        for label in ("plain", "selfextend")
        if args.only in (None, label)
    }
    results: object
    draw: Callable[[Path], None]
    if args.task == "perplexity":
        head = leading_tokens(tokenizer)
        rows = {
            label: _perplexities(args, label, models, prose, head, write)
            for label, models in adapters.items()
        }
        results, longest = rows, {label: found[-1] for label, found in rows.items()}
        draw = partial(nll_curves, longest, window, title)
    else:
        cells = {
            label: _lookups(args, label, models, prose, tokenizer, write)
            for label, models in adapters.items()
        }
        results = {label: [asdict(cell) for cell in found] for label, found in cells.items()}
        draw = partial(heat_maps, cells, title)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        report = _report(args, window, time.monotonic() - started, results)
        (args.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
        if not args.no_plot:
            draw(args.out / f"{args.task}.png")
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("depths", "samples", "bin_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be a positive integer, got {getattr(args, name)}")
    if min(args.lengths or [1]) < 1:
        raise ValueError(f"lengths must be positive integers, got {args.lengths}")


def load(name: str | None, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model and its tokenizer; None is the bundled model.

    Raises:
        ModelLoadError: it can't be found or read.
    """
    from selfextend_rag.llm.loading import load_model, load_tokenizer

    source = FOLDER if name is None or name == BUNDLED else name
    model = load_model(source)
    module: nn.Module = model  # for its signature of `to`
    module.to(device)
    return model, load_tokenizer(source)


def settings_for(args: argparse.Namespace, length: int, window: int) -> SelfExtend | None:
    """Return what the planner chooses for a prompt of ``length`` tokens and its answer.

    A group size that was asked for is used inside the window too; otherwise what fits runs plain,
    which is None.
    """
    planner = ContextBudgetPlanner(
        window,
        trained_fraction=args.trained_fraction,
        neighbor_window=args.neighbor_window,
        group_size=args.group_size,
        extension="auto" if args.group_size is None else "always",
    )
    return planner.plan(length, MAX_NEW_TOKENS).settings


Adapters = Iterator[tuple[int, HuggingFaceModel]]


def _adapters(
    args: argparse.Namespace, label: str, model: PreTrainedModel, window: int
) -> Adapters:
    """Yield each length, and the model plain or as the planner extends it for that length."""
    for length in args.lengths or [window * times for times in (1, 2, 4, 8, 16)]:
        settings = None if label == "plain" else settings_for(args, length, window)
        yield length, HuggingFaceModel(model, settings, kv_bits=args.kv_bits)


def _lookups(
    args: argparse.Namespace,
    label: str,
    adapters: Adapters,
    prose: Prose,
    tokenizer: PreTrainedTokenizerBase,
    write: Callable[[str], object],
) -> list[Cell]:
    cells: list[Cell] = []
    for length, adapter in adapters:

        def show(cell: Cell, settings: SelfExtend | None = adapter.settings) -> None:
            place = f"{label} length {cell.length} depth {cell.depth:.2f}"
            write(f"{place} right {cell.right} of {cell.samples} {settings or ''}\n")

        found = run_lookups(
            adapter,
            tokenizer,
            prose,
            task=args.task,
            length=length,
            depths=depths(args.depths),
            samples=args.samples,
            seed=args.seed,
            progress=show,
        )
        cells += [replace(cell, settings=adapter.settings) for cell in found]
    return cells


def _perplexities(
    args: argparse.Namespace,
    label: str,
    adapters: Adapters,
    prose: Prose,
    head: Sequence[int],
    write: Callable[[str], object],
) -> list[PerplexityRow]:
    found = []
    for length, adapter in adapters:
        row = run_perplexity(
            adapter, prose, head=head, length=length, samples=args.samples, bin_size=args.bin_size
        )
        row["settings"] = asdict(adapter.settings) if adapter.settings else None
        write(f"{label} length {length} perplexity {row['perplexity']:.3f}\n")
        found.append(row)
    return found


def _report(
    args: argparse.Namespace, window: int, seconds: float, results: object
) -> dict[str, object]:
    return {
        "task": args.task,
        "model": args.model or BUNDLED,
        "pretraining_window": window,
        "seed": args.seed,
        "kv_bits": args.kv_bits,
        "seconds": seconds,
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "processor": platform.processor() or platform.machine(),
        },
        "results": results,
    }


def main(argv: list[str] | None = None) -> int:
    """Run ``python -m selfextend_rag.evals``."""
    return run(parser("python -m selfextend_rag.evals").parse_args(argv), sys.stderr.write)
