"""From arguments to what the package takes; an option out of range is the user's mistake."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfextend_rag.bundled import FOLDER
from selfextend_rag.cli.console import silence_transformers
from selfextend_rag.documents import Document
from selfextend_rag.errors import SelfExtendError

BUNDLED = "bundled"
"""The name of the model that comes with the package; write ``./bundled`` for a folder."""

_STANDARD_INPUT = "/dev/stdin"


class BadOption(SelfExtendError):
    """An option that is out of range, or options that contradict each other."""


@contextmanager
def user_mistakes() -> Iterator[None]:
    """Turn ValueError, raised by checks of what the user gave, into `BadOption`."""
    try:
        yield
    except SelfExtendError:
        raise
    except ValueError as error:
        raise BadOption(str(error)) from error


def read_files(args: argparse.Namespace) -> list[Document]:
    """Return the documents in the files.

    Raises:
        DocumentError: one of them can't be read whole.
        BadOption: there is no such encoding.
    """
    if args.encoding is not None:
        try:
            "".encode(args.encoding)
        except (LookupError, ValueError) as error:
            raise BadOption(f"{error}; --encoding takes names such as utf-8 or cp1252") from error
    paths = [_STANDARD_INPUT if path == "-" else path for path in args.files]
    if paths.count(_STANDARD_INPUT) > 1:
        raise BadOption("standard input can be read once; name - once")
    return [Document.from_file(path, encoding=args.encoding) for path in paths]


def planner_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `ContextBudgetPlanner` but for the pretraining window."""
    if args.plain and (args.group_size or args.neighbor_window):
        raise BadOption("--plain goes without --group-size and --neighbor-window")
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise BadOption(f"--max-new-tokens must be positive, got {args.max_new_tokens}")
    if any(not question.strip() for question in getattr(args, "questions", ())):
        raise BadOption("a question is empty")
    return {
        "group_size": args.group_size,
        "neighbor_window": args.neighbor_window,
        "max_group_size": args.max_group_size,
        "extension": "never" if args.plain else "auto",
        "rule": args.rule,
    }


def memory_limit(args: argparse.Namespace) -> str | dict[int | str, str] | None:
    """Return the limit of memory, for all devices or for each; None if none was given."""
    given: list[str] = args.memory_limit
    if not any("=" in limit for limit in given):
        if len(given) > 1:
            raise BadOption("--memory-limit is given twice; name the devices, such as cpu=8GiB")
        return given[0] if given else None
    pairs = [limit.partition("=") for limit in given]
    if not all(device and size for device, _, size in pairs):
        raise BadOption("--memory-limit must name a device each time, such as cpu=8GiB, or never")
    return {device: size for device, _, size in pairs}


def load_llm(args: argparse.Namespace, options: dict[str, Any]) -> Any:
    """Return the model that was asked for, with these options of `LongContextLLM`."""
    silence_transformers()
    from selfextend_rag.llm import LongContextLLM

    options = {**options, "pretraining_window": args.pretraining_window, "dtype": args.dtype}
    options["device_map"] = None if args.device == "cpu" else args.device
    options["memory_limit"] = memory_limit(args)
    options["kv_bits"] = args.kv_bits
    options["full_attention"] = args.full_attention
    return LongContextLLM.from_pretrained(model_source(args.model), **options)


def model_source(name: str | None) -> str | Path:
    """Return the hub id or folder of a model; the bundled one has a name, and is the default."""
    if name is None or name == BUNDLED:
        return FOLDER
    return name


def model_name(args: argparse.Namespace) -> str:
    """Return what to call the model."""
    return BUNDLED if args.model is None else str(args.model)
