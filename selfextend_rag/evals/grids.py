"""Pass keys, lookups and perplexity on a grid of lengths, plain and extended."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selfextend_rag.bundled import FOLDER
from selfextend_rag.bundled import NAME as BUNDLED
from selfextend_rag.errors import UnsupportedModelError
from selfextend_rag.evals.access import HuggingFaceModel
from selfextend_rag.evals.plots import heat_maps, nll_curves
from selfextend_rag.evals.prose import Prose, depths, king_james, leading_tokens
from selfextend_rag.evals.runner import (
    MAX_NEW_TOKENS,
    TASKS,
    Cell,
    PerplexityRow,
    run_lookups,
    run_perplexity,
)
from selfextend_rag.maps import map_to_dict
from selfextend_rag.planning import ContextBudgetPlanner, pretraining_window_of
from selfextend_rag.positions import PositionMap

GRID_TASKS = (*TASKS, "perplexity")
LABELS = ("plain", "selfextend")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What to measure on which grid.

    Args:
        task: ``"passkey"``, ``"lookup"`` or ``"perplexity"``.
        model: hub id or folder, or ``"bundled"``.
        lengths: tokens of the prompts; by default 1, 2, 4, 8 and 16 windows of the model.
        depths: how many places of the fact.
        samples: documents in each cell.
        seed: moves all documents and facts.
        neighbor_window: W; a quarter of the window by default.
        group_size: G, also inside the window; by default what a length needs.
        trained_fraction: share of the window to use.
        labels: ``"plain"``, ``"selfextend"`` or both.
        kv_bits: keep keys and values in 8 or 4 bits.
        weight_bits: round weights to 8 or 4 bits, on the CPU alone.
        prose: text file; King James Bible by default.
        bin_size: positions in a bin of perplexity.
        device: torch device.
        full_attention: switch off the sliding windows of a model whose every layer has one.
        out: folder for ``results.json`` and the picture.
        plot: whether to draw the picture.

    Raises:
        ValueError: a count or a length is not positive, or a task or label is none.
    """

    task: str
    model: str = BUNDLED
    lengths: Sequence[int] = ()
    depths: int = 10
    samples: int = 20
    seed: int = 0
    neighbor_window: int | None = None
    group_size: int | None = None
    trained_fraction: float = 2 / 3
    labels: Sequence[str] = LABELS
    kv_bits: int | None = None
    weight_bits: int | None = None
    prose: Path | None = None
    bin_size: int = 64
    device: str = "cpu"
    full_attention: bool = False
    out: Path | None = None
    plot: bool = True

    def __post_init__(self) -> None:
        for name in ("depths", "samples", "bin_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)}")
        if min(self.lengths, default=1) < 1:
            raise ValueError(f"lengths must be positive integers, got {self.lengths}")
        for what, given, known in (
            ("the task", [self.task], GRID_TASKS),
            ("methods", self.labels, LABELS),
        ):
            if not given or not {*given} <= {*known}:
                names = ", ".join(given) or "none"
                raise ValueError(f"{what} must be of {' and '.join(known)}, got {names}")

    def settings(self, length: int, window: int) -> PositionMap | None:
        """Return what the planner chooses for a prompt of ``length`` tokens and its answer.

        A group size that was asked for is used inside the window too; otherwise what fits runs
        plain, which is None.
        """
        planner = ContextBudgetPlanner(
            window,
            trained_fraction=self.trained_fraction,
            neighbor_window=self.neighbor_window,
            group_size=self.group_size,
            extension="auto" if self.group_size is None else "always",
        )
        return planner.plan(length, MAX_NEW_TOKENS).settings


def run_grid(grid: Grid, write: Callable[[str], object]) -> dict[str, object]:
    """Measure, write a line for each result, and files if asked; return the report.

    Raises:
        ModelLoadError: the model can't be found or read.
        UnsupportedModelError: ``weight_bits`` can't be had.
    """
    model, tokenizer = load(
        grid.model,
        grid.device,
        full_attention=grid.full_attention,
        weight_bits=grid.weight_bits,
    )
    window = pretraining_window_of(model.config)
    text = grid.prose.read_text("utf-8") if grid.prose else king_james()
    prose = Prose.tokenize(text, tokenizer)
    title = f"{grid.task}, {grid.model}, window of {window} tokens"
    started = time.monotonic()
    adapters = {label: _adapters(grid, label, model, window) for label in grid.labels}
    results: object
    draw: Callable[[Path], None]
    if grid.task == "perplexity":
        head = leading_tokens(tokenizer)
        rows = {
            label: _perplexities(grid, label, models, prose, head, write)
            for label, models in adapters.items()
        }
        results, longest = rows, {label: found[-1] for label, found in rows.items()}
        draw = partial(nll_curves, longest, window, title)
    else:
        cells = {
            label: _lookups(grid, label, models, prose, tokenizer, write)
            for label, models in adapters.items()
        }
        results = {label: [asdict(cell) for cell in found] for label, found in cells.items()}
        draw = partial(heat_maps, cells, title)
    report = _report(grid, window, time.monotonic() - started, results)
    if grid.out is not None:
        grid.out.mkdir(parents=True, exist_ok=True)
        (grid.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
        if grid.plot:
            draw(grid.out / f"{grid.task}.png")
    return report


def load(
    name: str, device: str, *, full_attention: bool = False, weight_bits: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model and its tokenizer, by hub id or folder, or ``"bundled"``.

    Raises:
        ModelLoadError: it can't be found or read.
        UnsupportedModelError: its weights can't be rounded to ``weight_bits``, on this device or at
            all.
    """
    from selfextend_rag.llm.loading.model import load_model
    from selfextend_rag.llm.loading.sources import load_tokenizer

    if weight_bits is not None and torch.device(device).type != "cpu":
        raise UnsupportedModelError(
            f"weight_bits={weight_bits} can't be had: it is for the CPU, and the model is to run "
            f"on {device}"
        )
    source = FOLDER if name == BUNDLED else name
    model = load_model(source, full_attention=full_attention, weight_bits=weight_bits)
    module: nn.Module = model  # for its signature of `to`
    module.to(device)
    return model, load_tokenizer(source)


Adapters = Iterator[tuple[int, HuggingFaceModel]]


def _adapters(grid: Grid, label: str, model: PreTrainedModel, window: int) -> Adapters:
    """Yield each length, and the model plain or as the planner extends it for that length."""
    for length in grid.lengths or [window * times for times in (1, 2, 4, 8, 16)]:
        settings = None if label == "plain" else grid.settings(length, window)
        yield length, HuggingFaceModel(model, settings, kv_bits=grid.kv_bits)


def _lookups(
    grid: Grid,
    label: str,
    adapters: Adapters,
    prose: Prose,
    tokenizer: PreTrainedTokenizerBase,
    write: Callable[[str], object],
) -> list[Cell]:
    cells: list[Cell] = []
    for length, adapter in adapters:

        def show(cell: Cell, settings: PositionMap | None = adapter.settings) -> None:
            place = f"{label} length {cell.length} depth {cell.depth:.2f}"
            write(f"{place} right {cell.right} of {cell.samples} {settings or ''}\n")

        found = run_lookups(
            adapter,
            tokenizer,
            prose,
            task=grid.task,
            length=length,
            depths=depths(grid.depths),
            samples=grid.samples,
            seed=grid.seed,
            progress=show,
        )
        cells += [replace(cell, settings=adapter.settings) for cell in found]
    return cells


def _perplexities(
    grid: Grid,
    label: str,
    adapters: Adapters,
    prose: Prose,
    head: Sequence[int],
    write: Callable[[str], object],
) -> list[PerplexityRow]:
    found = []
    for length, adapter in adapters:
        row = run_perplexity(
            adapter, prose, head=head, length=length, samples=grid.samples, bin_size=grid.bin_size
        )
        row["settings"] = map_to_dict(adapter.settings) if adapter.settings else None
        write(f"{label} length {length} perplexity {row['perplexity']:.3f}\n")
        found.append(row)
    return found


def _report(grid: Grid, window: int, seconds: float, results: object) -> dict[str, object]:
    return {
        "task": grid.task,
        "model": grid.model,
        "pretraining_window": window,
        "seed": grid.seed,
        "kv_bits": grid.kv_bits,
        "weight_bits": grid.weight_bits,
        "seconds": seconds,
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "processor": platform.processor() or platform.machine(),
        },
        "results": results,
    }
