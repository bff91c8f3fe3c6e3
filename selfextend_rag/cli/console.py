"""What a person sees: answers on standard output, everything else on standard error."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PROGRAM = "selfextend-rag"


class Console:
    """The two output streams.

    Args:
        quiet: leave out remarks; errors and warnings are never left out.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Write a remark."""
        if not self.quiet:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def write(self, text: str) -> None:
        """Write a part of an answer, to be seen at once."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def write_json(self, value: Any) -> None:
        """Write one JSON object."""
        self.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Yield a function to call with tokens done and to do; it shows them on a terminal."""
        if not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from tqdm import tqdm  # type: ignore[import-untyped]

        with tqdm(desc=what, unit="token", leave=False, file=sys.stderr) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield show


def complain(error: BaseException | str) -> None:
    """Write an error as one line."""
    sys.stderr.write(f"{PROGRAM}: error: {' '.join(str(error).split())}\n")


@contextmanager
def own_voice() -> Iterator[None]:
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
        return f"{PROGRAM}: warning: {' '.join(record.getMessage().split())}"


def silence_transformers() -> None:
    """Turn off the log and the progress bars of transformers; its downloads show on a terminal."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not sys.stderr.isatty():
        disable_progress_bars()
