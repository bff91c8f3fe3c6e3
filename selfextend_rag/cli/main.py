"""Parse, run a command, and turn what goes wrong into one line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from selfextend_rag.cli.console import OutputError, cli_output, print_error
from selfextend_rag.cli.parser import build_parser
from selfextend_rag.errors import SelfExtendError

BAD_INPUT = 2
INTERRUPTED = 130
OUTPUT_CLOSED = 141
OUTPUT_FAILED = 74

_COMMANDS = {
    "ask": "selfextend_rag.cli.ask",
    "read": "selfextend_rag.cli.read",
    "plan": "selfextend_rag.cli.plan",
    "support": "selfextend_rag.cli.support",
    "calibrate": "selfextend_rag.cli.calibrate",
    "eval": "selfextend_rag.cli.evaluate",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0 is success; 2 is bad input, with one line on standard error; 74 is an output that can't be
    written, such as a full disk; 130 is Ctrl-C; 141 is an output that nobody reads any more.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with cli_output():
            return _run(build_parser(arguments).parse_args(arguments))
    except SelfExtendError as error:
        print_error(error)
        return BAD_INPUT
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output has enough
        _give_up_output()
        return OUTPUT_CLOSED
    except OutputError as error:
        _give_up_output()
        print_error(error)
        return OUTPUT_FAILED


def _give_up_output() -> None:
    """Lead standard output nowhere, or Python would report it once more when it exits."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(args: argparse.Namespace) -> int:
    return import_module(_COMMANDS[args.command]).run(args)
