"""What a person sees: answers on standard output, everything else on standard error."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PROGRAM = "selfextend-rag"
_ARGUMENTS = (
    "encoding|group_size|neighbor_window|max_group_size|pretraining_window|max_new_tokens"
    "|question_reserve|memory_limit|turns|temperature|seed|depths|samples|length|lengths|bin_size"
)
# As errors name them: "encoding=", "pass pretraining_window", "group_size must be ...".
_NAMED = re.compile(
    rf"(?<![\w/.-])"
    rf"(?:({_ARGUMENTS})=|(?<=pass )({_ARGUMENTS})\b|({_ARGUMENTS})(?= (?:must|names)\b))"
)


class OutputError(Exception):
    """Standard output can't be written."""


class Console:
    """The two output streams.

    Args:
        quiet: leave out remarks; errors and warnings are never left out.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Write a remark."""
        if not self.quiet and sys.stderr is not None:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def write(self, text: str) -> None:
        """Write a part of an answer, to be seen at once.

        Raises:
            BrokenPipeError: nobody reads it any more.
            OutputError: it can't be written.
        """
        if sys.stdout is None:
            raise OutputError("standard output is closed; lead it somewhere, such as to a file")
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"can't write the output: {error.strerror}") from error

    def write_json(self, value: Any) -> None:
        """Write one JSON object."""
        self.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Yield a function to call with tokens done and to do; it shows them on a terminal."""
        if sys.stderr is None or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from tqdm import tqdm  # type: ignore[import-untyped]  # ships no types

        with tqdm(desc=what, unit="token", leave=False, file=sys.stderr) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield show


def print_error(error: BaseException | str) -> None:
    """Write an error as one line."""
    if sys.stderr is not None:
        sys.stderr.write(f"{PROGRAM}: error: {_as_options(' '.join(str(error).split()))}\n")


def _as_options(text: str) -> str:
    """Return a message with the arguments of Python that it names as options of this program."""
    return _NAMED.sub(lambda found: f"--{found[found.lastindex or 0].replace('_', '-')}", text)


@contextmanager
def cli_output() -> Iterator[None]:
    """Within the block, this package's warnings are one line each, and other libraries are quiet.

    Characters that the output can't show are replaced rather than refused.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    handler.setLevel(logging.WARNING)
    logger = logging.getLogger("selfextend_rag")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{PROGRAM}: warning: {_as_options(' '.join(record.getMessage().split()))}"


def silence_transformers() -> None:
    """Turn off the log and the progress bars of transformers; its downloads show on a terminal."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if sys.stderr is None or not sys.stderr.isatty():
        disable_progress_bars()
