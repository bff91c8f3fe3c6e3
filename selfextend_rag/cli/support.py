"""``selfextend-rag support``: which layers of a model are extended, and why not the others."""

from __future__ import annotations

import argparse
from typing import Any

from selfextend_rag.cli.console import Console, silence_transformers
from selfextend_rag.cli.options import model_source

NOT_SUPPORTED = 1


def run(args: argparse.Namespace) -> int:
    """Write the report; return the exit code."""
    silence_transformers()
    from selfextend_rag.model import support

    report = support(_subject(args))
    console = Console()
    if args.json:
        console.write_json(report.to_dict())
    else:
        console.write(f"{report}\n")
    return 0 if report.supported else NOT_SUPPORTED


def _subject(args: argparse.Namespace) -> Any:
    from selfextend_rag.llm.loading import load_config, load_model

    source = model_source(args.model)
    load = load_model if args.weights else load_config
    return load(source, full_attention=args.full_attention)
