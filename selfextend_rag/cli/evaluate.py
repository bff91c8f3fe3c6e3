"""``selfextend-rag eval``: passes on to the evaluation."""

from __future__ import annotations

import argparse
import logging
import sys

from selfextend_rag.cli.console import silence_transformers
from selfextend_rag.cli.options import BadOption, user_mistakes


def run(args: argparse.Namespace) -> int:
    """Evaluate, with its results as lines on standard output; return the exit code."""
    silence_transformers()
    from selfextend_rag.evals import cli

    logger = logging.getLogger("selfextend_rag.evals")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with user_mistakes():
            return cli.run(args)
    except BrokenPipeError:
        raise
    except OSError as error:  # a model or a file that is not there
        raise BadOption(str(error)) from error
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
