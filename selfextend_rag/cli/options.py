"""The options that commands share, and what they mean to the package.

A command is a dataclass: typer takes its fields for options and makes one of what was typed, and
the program runs it. Annotations are evaluated where they are written (no ``annotations`` from
``__future__``), since commands in other modules inherit them.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typer import Argument, Option

from selfextend_rag.bundled import FOLDER
from selfextend_rag.bundled import NAME as BUNDLED
from selfextend_rag.cli.app import Command, put, silence_transformers, with_options
from selfextend_rag.errors import SelfExtendError

if TYPE_CHECKING:
    from selfextend_rag.documents import Document, ReadFiles
    from selfextend_rag.llm import LongContextLLM, Reading
    from selfextend_rag.planning import ContextPlan

Values = dict[str, Any]  # arguments by name
DType = Literal["auto", "float32", "bfloat16", "float16"]
Rule = Literal["empirical", "exact"]
FILES = "files, folders or ZIP archives of files; - is standard input"

_STANDARD_INPUT = "/dev/stdin"
_budget = partial(Option, rich_help_panel="Budget")


class BadOption(SelfExtendError):
    """An option that is out of range, or options that contradict each other."""


@contextmanager
def user_mistakes() -> Iterator[None]:
    """Turn errors from checks of what the user gave into `BadOption`."""
    try:
        yield
    except SelfExtendError:
        raise
    except (ValueError, OSError) as error:
        raise BadOption(str(error)) from error


def check_output(path: str) -> None:
    """Refuse the name of a file that can't be written, before the work that would fill it."""
    folder = Path(path).parent
    if not path:
        raise BadOption("-o is empty; it takes the name of a file")
    if not folder.is_dir():
        raise BadOption(f"there is no folder {folder} to save in; make it, or name another")
    if Path(path).is_dir():
        raise BadOption(f"{path} is a folder; -o takes the name of a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadOption(f"nothing can be written in the folder {folder}; name another")


@dataclass(kw_only=True)
class ModelOptions(Command):
    """A model by name, and the form of the result."""

    model: str = Argument(..., metavar="MODEL", help='hub id, folder or GGUF file, or "bundled"')
    full_attention: bool = Option(
        False, "--full-attention", help="switch off the sliding windows, if every layer has one"
    )
    json: bool = Option(False, "--json", help="write one JSON object and no more")

    @property
    def source(self) -> str | Path:
        """The hub id, folder or file of the model."""
        return FOLDER if self.model == BUNDLED else self.model

    def say(self, text: str) -> None:
        """Write a remark, unless all is to be one JSON object."""
        if not self.json and sys.stderr is not None:
            put(sys.stderr, f"{text}\n")

    def write_result(self, report: Mapping[str, object], text: str) -> None:
        """Write the report as JSON where that was asked for, and otherwise the text."""
        self.write((json.dumps(report, ensure_ascii=False, indent=2) if self.json else text) + "\n")


@dataclass(kw_only=True)
class DocumentOptions(ModelOptions):
    """Files, and how the model that is to read them is loaded."""

    files: list[str] = Argument(..., metavar="FILE", help=FILES)
    glob: str | None = Option(
        None, help="read only such files of folders and archives: *.pdf, minutes/**/*.md"
    )
    encoding: str | None = Option(None, help="encoding of the files; found out by default")
    ocr: bool = Option(False, "--ocr", help="recognise the text of pages that are pictures")
    pages: Literal["text", "auto", "images"] = Option(
        "text",
        help="for a vision model: auto has pages without text, and picture files, as pictures; "
        "images has all pages of PDF files so",
    )
    strict: Literal["warning", "loss"] | None = Option(
        None, help="refuse files whose text may be wrong, or lacks what people see in them"
    )
    pretraining_window: int | None = Option(
        None, help="tokens the model was trained to see; what its configuration says by default"
    )
    device: str = Option("cpu", help='where the model runs; "cuda" and "auto" need accelerate')
    dtype: DType = Option("auto", help="precision of the weights; auto is as they are stored")
    weight_bits: Literal[8, 4] | None = Option(
        None, help="round weights to so many bits: faster answers on a CPU"
    )

    @property
    def device_map(self) -> str | None:
        """The device as transformers takes it; None is the CPU, which needs no accelerate."""
        return None if self.device == "cpu" else self.device

    def documents(self) -> "ReadFiles":
        """Return the documents in the files, and what was skipped."""
        from selfextend_rag.documents import read_documents

        try:
            "".encode("utf-8" if self.encoding is None else self.encoding)
        except (LookupError, ValueError) as error:
            raise BadOption(f"{error}; --encoding takes names such as utf-8 or cp1252") from error
        paths = [_STANDARD_INPUT if path == "-" else path for path in self.files]
        if paths.count(_STANDARD_INPUT) > 1:
            raise BadOption("standard input can be read once; name - once")
        if self.ocr and self.pages != "text":
            raise BadOption("--ocr and --pages are two ways to read a scan; give one")
        slow = self.ocr or self.pages != "text"
        with self.progress("pages") if slow else nullcontext() as progress:
            return read_documents(
                paths,
                glob=self.glob,
                encoding=self.encoding,
                ocr=self.ocr,
                strict=self.strict or False,
                progress=progress,
                pages=self.pages,
            )

    def load(self, **options: Any) -> "LongContextLLM":
        """Return the model, with further options of `LongContextLLM`."""
        silence_transformers()
        from selfextend_rag.llm import LongContextLLM

        return LongContextLLM.from_pretrained(
            self.source,
            device_map=self.device_map,
            dtype=self.dtype,
            full_attention=self.full_attention,
            weight_bits=self.weight_bits,
            pretraining_window=self.pretraining_window,
            **options,
        )


@dataclass(kw_only=True)
class ReadingOptions(DocumentOptions):
    """How documents are to be read: a model, which is the bundled one by default, and a budget."""

    model: str = Option(BUNDLED, help="hub id, folder or GGUF file")
    max_new_tokens: int | None = _budget(None, help="the longest answer to keep space for")
    group_size: int | None = _budget(None, help="positions that share one; found if not given")
    neighbor_window: int | None = _budget(
        None, help="latest tokens at exact distance; a quarter of the model's window by default"
    )
    max_group_size: int = _budget(64, help="the largest group size to choose")
    rule: Rule = _budget("empirical", help="use the well-trained part of the window, or all of it")
    memory_limit: list[str] = _budget(
        [],
        metavar="[D=]SIZE",
        help="what the model may take in all, such as 8GiB, or cuda:0=20GiB for one device; what "
        "is free by default",
    )
    kv_bits: Literal[8, 4] | None = _budget(None, help="keep keys and values in so many bits")
    plain: bool = _budget(False, "--plain", help="never extend; nonsense past the window")

    def planner_options(self, questions: Sequence[str] = ()) -> Values:
        """Return the options of `ContextBudgetPlanner` but for the pretraining window."""
        if self.plain and (self.group_size or self.neighbor_window):
            raise BadOption("--plain goes without --group-size and --neighbor-window")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise BadOption(f"--max-new-tokens must be positive, got {self.max_new_tokens}")
        if not all(map(str.strip, questions)):
            raise BadOption("a question is empty")
        names = ("group_size", "neighbor_window", "max_group_size", "rule")
        chosen = {name: getattr(self, name) for name in names}
        return {**chosen, "extension": "never" if self.plain else "auto"}

    def memory_limits(self) -> str | dict[int | str, str] | None:
        """Return the limit of memory, for all devices or for each; None if none was given."""
        given = self.memory_limit
        if not any("=" in limit for limit in given):
            if len(given) > 1:
                raise BadOption("--memory-limit is given twice; name the devices, such as cpu=8GiB")
            return given[0] if given else None
        pairs = [limit.partition("=") for limit in given]
        if not all(device and size for device, _, size in pairs):
            how = "must name a device each time, such as cpu=8GiB, or never"
            raise BadOption(f"--memory-limit {how}")
        return {device: size for device, _, size in pairs}

    def open(self, questions: Sequence[str] = ()) -> "tuple[LongContextLLM, ReadFiles]":
        """Return the model, which plans by these options and within its memory, and documents."""
        chosen, limit = self.planner_options(questions), self.memory_limits()
        found = self.documents()
        return self.load(kv_bits=self.kv_bits, memory_limit=limit, **chosen), found

    def read(
        self, llm: "LongContextLLM", documents: "Sequence[Document]", asked: Values
    ) -> "Reading":
        """Say how documents are read, and read them; ``asked`` is for `LongContextLLM.plan`."""
        plan = llm.plan(documents, max_new_tokens=self.max_new_tokens, **asked)
        self.say(f"{self.explained(plan)}\n")
        with self.progress("reading") as progress:
            return llm.read(
                documents,
                max_new_tokens=plan.max_new_tokens,
                question_reserve=plan.reserve_tokens,
                progress=progress,
            )

    def explained(self, plan: "ContextPlan") -> str:
        """Return what a plan says, without the remarks on files that were a warning each."""
        return with_options((replace(plan, remarks=()) if self.files else plan).explain())

    def report(
        self, reading: "Reading", found: "ReadFiles", name: str | None, **more: object
    ) -> dict[str, object]:
        """Return the JSON values of a reading, and the name that it is saved under."""
        figures = {"plan": reading.plan.to_dict(), "read_seconds": reading.seconds}
        read = listed(reading.documents, found)
        return {"model": self.model, "reading": name, **read, **more, **figures}


def listed(documents: "Sequence[Document]", found: "ReadFiles") -> dict[str, object]:
    """Return the JSON values of documents but for their text, and of what was skipped."""
    described = [
        {
            **{name: getattr(document, name) for name in ("title", "source", "id", "metadata")},
            "remarks": [remark.to_dict() for remark in document.remarks],
        }
        for document in documents
    ]
    skipped = [skip.to_dict() for skip in found.skipped]
    return {"documents": described, "skipped": skipped, "unmatched": found.unmatched}
