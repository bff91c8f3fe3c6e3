"""``selfextend-rag calibrate``: measure which part of a model's window is well trained."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from selfextend_rag.cli.console import Console, print_error, silence_transformers
from selfextend_rag.cli.options import BadOption, model_source, read_files, user_mistakes

NOTHING_GOOD = 1


def run(args: argparse.Namespace) -> int:
    """Measure, write the map, store it; return the exit code."""
    console = Console(quiet=args.json)
    text = "\n\n".join(document.text for document in read_files(args))
    with user_mistakes():
        llm = _load(args)
        window = llm.planner.pretraining_window
        length = 4 * window if args.length is None else args.length
        inside, cells = _measured(console, args, llm, text, window, length)
    from selfextend_rag.evals.calibration import chosen, store
    from selfextend_rag.planning import CalibrationError, calibration_path

    if args.plot:
        from selfextend_rag.evals.plots import calibration_map

        calibration_map(cells, args.model, args.plot)
    try:
        calibration = chosen(args.model, window, length, inside, cells)
    except CalibrationError as error:
        print_error(error)
        return NOTHING_GOOD
    path = args.output or calibration_path(llm.model.config)
    try:
        store(calibration, path)
    except OSError as error:
        raise BadOption(
            f"can't store the calibration in {path}: {error.strerror}; name another file with "
            "--output"
        ) from error
    if args.json:
        console.write_json({"stored": str(path), "calibration": calibration.to_dict()})
    else:
        console.write(f"\n{calibration.explain()}\nStored in {path}\n")
    return 0


def _load(args: argparse.Namespace) -> Any:
    silence_transformers()
    from selfextend_rag.llm import LongContextLLM

    options: dict[str, Any] = {"pretraining_window": args.pretraining_window, "dtype": args.dtype}
    options["full_attention"] = args.full_attention
    options["device_map"] = None if args.device == "cpu" else args.device
    return LongContextLLM.from_pretrained(model_source(args.model), **options)


def _measured(
    console: Console, args: argparse.Namespace, llm: Any, text: str, window: int, length: int
) -> tuple[Any, Sequence[Any]]:
    """Return the cell inside the window and those of the grid; each is shown when measured."""
    from selfextend_rag.evals.calibration import Calibrator, grid
    from selfextend_rag.evals.prose import Prose, king_james

    prose = Prose.tokenize(text or king_james(), llm.tokenizer)
    calibrator = Calibrator(
        llm.engine, llm.tokenizer, prose, window=window, length=length,
        depth_count=args.depths, samples=args.samples, seed=args.seed,
    )  # fmt: skip
    settings = grid(window, length)
    if not settings:
        raise BadOption(f"no settings reach {length} tokens with a window of {window}")
    prompts = args.samples * (args.depths + 1)
    console.say(
        f"{len(settings)} settings, {prompts} texts of {length} tokens each. In the window of "
        f"{window}, by plain attention, first:"
    )

    def show(cell: Any) -> None:
        inside = cell.neighbor_window == window
        what = "plain" if inside else f"G {cell.group_size:3}, W {cell.neighbor_window:5}"
        console.say(
            f"{what:15} {cell.fraction:4.0%} of the window used: {cell.right} of {cell.asked} pass "
            f"keys, perplexity {cell.perplexity:.2f}"
        )

    return calibrator.run(show)
