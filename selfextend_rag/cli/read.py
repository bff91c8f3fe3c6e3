"""``selfextend-rag read``: read documents and save the reading, to be asked later."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from selfextend_rag.cli.console import Console
from selfextend_rag.cli.options import (
    BadOption,
    load_llm,
    model_name,
    planner_options,
    read_files,
    user_mistakes,
)


def _check_output(output: str) -> None:
    folder = Path(output).parent
    if not output:
        raise BadOption("-o is empty; it takes the name of a file")
    if not folder.is_dir():
        raise BadOption(f"there is no folder {folder} to save in; make it, or name another")
    if Path(output).is_dir():
        raise BadOption(f"{output} is a folder; -o takes the name of a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadOption(f"nothing can be written in the folder {folder}; name another")


def run(args: argparse.Namespace) -> int:
    """Read, save, and say what was done; return the exit code."""
    console = Console(quiet=args.json)
    _check_output(args.output)  # before the reading, which may take long
    options = planner_options(args)
    documents = read_files(args)
    with user_mistakes():
        llm = load_llm(args, options)
        plan = llm.plan(
            documents,
            max_new_tokens=args.max_new_tokens,
            question_reserve=args.question_reserve,
        )
        console.say(f"{plan.explain()}\n")
        with console.progress("reading") as progress:
            reading = llm.read(
                documents,
                max_new_tokens=plan.max_new_tokens,
                question_reserve=plan.reserve_tokens,
                progress=progress,
            )
    reading.save(args.output)
    size = os.path.getsize(args.output)
    if args.json:
        console.write_json(
            {
                "model": model_name(args),
                "reading": args.output,
                "bytes": size,
                "plan": reading.plan.to_dict(),
                "read_seconds": reading.seconds,
            }
        )
    else:
        console.write(
            f"{args.output}: {reading.plan.prompt_tokens} tokens, {size / 2**20:.1f} MiB, "
            f"read in {reading.seconds:.1f} s\n"
        )
    return 0
