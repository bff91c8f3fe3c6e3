"""The program around its commands: what is written where, errors as one line, exit codes."""

import errno
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import TextIO

import typer

from selfextend_rag.errors import SelfExtendError

PROGRAM = "selfextend-rag"

_ARGUMENTS = (
    "encoding|ocr|pages|group_size|neighbor_window|max_group_size|pretraining_window|max_new_tokens"
    "|question_reserve|memory_limit|turns|temperature|seed|strict|depths|samples|length|lengths|bin_size|limit|cut_tokens"
    "|kv_bits|weight_bits|passages|passage_words"
)
# As errors name them: "encoding=", 'pages="auto"', "pass pretraining_window", "group_size must be".
_NAMED = re.compile(
    rf"(?<![\w/.-])"
    rf"(?:({_ARGUMENTS})=(?:True\b|\"(?P<word>[\w-]+)\")?"
    rf"|(?<=pass )({_ARGUMENTS})\b|({_ARGUMENTS})(?= (?:must|names)\b))"
)


class OutputError(Exception):
    """Standard output can't be written."""


class Command:
    """A command and its two outputs: results on standard output, all else on standard error."""

    def run(self) -> int:
        """Do what was asked for, write what came of it, and return the exit code."""
        raise NotImplementedError

    def write(self, text: str) -> None:
        """Write a part of the result, to be seen at once.

        Raises:
            OutputError: it can't be written; from a BrokenPipeError, if nobody reads it any more.
        """
        if sys.stdout is None:
            raise OutputError("standard output is closed; lead it somewhere, such as to a file")
        put(sys.stdout, text)

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Yield a function to call with tokens done and to do; it shows them on a terminal."""
        if not _on_terminal():
            yield lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress

        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def put(stream: TextIO, text: str) -> None:
    """Write a text to a stream at once, or raise `OutputError`."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> OutputError:
    return OutputError(f"can't write the output: {error.strerror}")


def print_error(text: str, kind: str = "error") -> None:
    """Write an error as one line; options replace the arguments of Python that it names."""
    if sys.stderr is not None:
        line = with_options(" ".join(text.split()))
        sys.stderr.write(f"{PROGRAM}: {kind}: {line}\n")


def with_options(text: str) -> str:
    """Return a text with options in place of the arguments of Python that it names."""

    def option(name: re.Match[str]) -> str:
        argument = name[1] or name[3] or name[4]
        valued = name[0].endswith("=") and text[name.end() : name.end() + 1].isalnum()
        value = f" {name['word']}" if name["word"] else " " if valued else ""
        return f"--{argument.replace('_', '-')}{value}"

    return _NAMED.sub(option, text)


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def silence_transformers() -> None:
    """Turn off the log and the progress bars of transformers; its downloads show on a terminal."""
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not _on_terminal():
        disable_progress_bars()


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_error(record.getMessage(), "warning")


def _run(command: Command, **_: object) -> None:
    """Run a command and end with its exit code, or that of what went wrong; see `main`."""
    try:
        code = command.run()
    except SelfExtendError as error:
        print_error(str(error))
        code = 2
    except KeyboardInterrupt:
        print_error("interrupted")
        code = 130
    except OutputError as error:
        code = _end_output(error)
    raise typer.Exit(code)


def _end_output(error: OutputError) -> int:
    """Report that standard output can't be written, and return the exit code."""
    if sys.stdout is not None:  # lead it nowhere, or Python reports it again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error.__cause__, BrokenPipeError):
        return 141
    print_error(str(error))
    return 74


app = typer.Typer(
    add_completion=False,
    result_callback=_run,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _write_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {metadata.version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def _program(
    version: bool = typer.Option(False, "--version", callback=_write_version, is_eager=True),
) -> None:
    """Answer questions over whole documents with a local model.

    Its context window is stretched at inference time by SelfExtend.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0 is success; 2 is bad input, with one line on standard error; 74 is an output that can't be
    written, such as a full disk; 130 is Ctrl-C; 141 is an output that nobody reads any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what it can't show is replaced, not refused
            stream.reconfigure(errors="replace")
    handler, logger = _Warnings(logging.WARNING), logging.getLogger("selfextend_rag")
    logger.addHandler(handler)
    app.rich_markup_mode = "rich" if _on_terminal() else None  # plain text in pipes and files
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of other libraries
            typer.main.get_command(app).main(argv, PROGRAM)
    except SystemExit as end:
        return int(end.code or 0)
    except OSError as error:  # of typer, which writes help and the version itself
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return _end_output(_unwritable(error))
    finally:
        logger.removeHandler(handler)
    return 0
