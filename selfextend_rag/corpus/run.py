"""Runs questions over a corpus: what the file of rows has already is not asked again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfextend_rag.corpus.answering import (
    Asked,
    ModelSpec,
    Unit,
    answer_unit,
    failed_row,
    key_of,
)
from selfextend_rag.corpus.rows import CorpusFile, CorpusRow
from selfextend_rag.corpus.table import check_parquet, write_parquet
from selfextend_rag.documents import Document, ReadFiles
from selfextend_rag.errors import DocumentError, DocumentTooLarge
from selfextend_rag.llm.base import BaseLLM
from selfextend_rag.llm.budget import Space
from selfextend_rag.llm.remote import RemoteLLM

Report = Callable[[CorpusRow, int, int], None]
"""Is called with each new row, how many rows there are now, and how many there will be."""

PARQUET = ".parquet"


@dataclass(frozen=True, slots=True)
class CorpusResult:
    """What a run came to.

    Args:
        rows: all that were asked for, in the order of documents and questions.
        computed: how many of them were computed now, and not found in the file.
    """

    rows: tuple[CorpusRow, ...]
    computed: int

    @property
    def failed(self) -> tuple[CorpusRow, ...]:
        """Return the rows without an answer."""
        return tuple(row for row in self.rows if row.status != "answered")


def run_corpus(
    documents: ReadFiles | Sequence[Document],
    questions: str | Sequence[str],
    model: BaseLLM | ModelSpec,
    out: str | os.PathLike[str],
    *,
    together: bool = False,
    evidence: bool = False,
    replicas: int = 0,
    replica_options: Mapping[str, Any] | None = None,
    report: Report = lambda row, done, total: None,
    **options: Any,
) -> CorpusResult:
    """Ask questions about the documents of a corpus, each read whole, and keep the answers.

    Each document is a prompt of its own, and has a row for each question. A document that can't be
    read, or answered about, is a row with its error, and the others go on. Rows are written
    as they come; a run that was ended continues where it stopped.

    Args:
        documents: what `read_documents` found, or documents.
        questions: one or several.
        model: a model, or how to open it. Replicas open it themselves, so they need the latter.
        out: a file of JSON lines, only ever appended to; or, with the ending ``.parquet``, a table,
            written when all is done, whose rows are kept next to it in ``.parquet.jsonl``.
        together: put documents together, as many as fit a prompt (``plan_groups``); a row is then
            the answer about all of them.
        evidence: look for the passages that answers rest on.
        replicas: of the model, in processes of Ray (extra ``ray``); 0 runs in this process.
        replica_options: options of Ray for each, such as ``{"num_gpus": 1}``.
        report: called with each new row.
        options: of the answers, such as ``max_new_tokens`` and ``json_schema``.

    Raises:
        ImportError: Ray, or for Parquet pyarrow, is not installed.
        ResultsError: ``out`` is being written by another process, or is another file.
        ValueError: there are no questions, or an option is out of range.
    """
    asked = Asked(
        (questions,) if isinstance(questions, str) else tuple(dict.fromkeys(questions)),
        {name: value for name, value in options.items() if value is not None},
        evidence,
    )
    if not asked.questions or not all(map(str.strip, asked.questions)):
        raise ValueError("there are no questions, or one is empty")
    if replicas < 0:
        raise ValueError(f"replicas must be 0 or a positive integer, got {replicas}")
    path = Path(out)
    table = path if path.suffix == PARQUET else None
    if table is not None:
        check_parquet()  # before the work
    with CorpusFile(path if table is None else path.with_name(f"{path.name}.jsonl")) as file:
        work = _Work(asked, model, file, report)
        units, bad = work.units(documents, together)
        keys = [key for unit in (*bad, *units) for key in unit.keys.values()]
        work.total = len(keys)
        for rows in work.answers(units, replicas, replica_options or {}):
            work.keep(rows)
        found = {row.key: row for row in file}
    result = CorpusResult(tuple(found[key] for key in keys), work.computed)
    if table is not None:
        write_parquet(table, result.rows)
    return result


class _Work:
    """What a run knows: the model, once it is needed, and the rows so far."""

    def __init__(
        self, asked: Asked, model: BaseLLM | ModelSpec, file: CorpusFile, report: Report
    ) -> None:
        self.asked = asked
        self.total = self.computed = 0
        self._model = model
        self._file = file
        self._report = report
        self._opened: BaseLLM | None = None

    @property
    def llm(self) -> BaseLLM:
        """Return the model in this process."""
        if self._opened is None:
            model = self._model
            self._opened = model.open() if isinstance(model, ModelSpec) else model
        return self._opened

    def units(
        self, documents: ReadFiles | Sequence[Document], together: bool
    ) -> tuple[list[Unit], list[Unit]]:
        """Return what is to be read, and what can't be, whose rows are written."""
        files = documents if isinstance(documents, ReadFiles) else ReadFiles(tuple(documents))
        bad = []
        for skip in files.skipped:
            if skip.kind == "refused":
                unit = self._unit((_unread(skip.source),))
                bad.append(unit)
                self._fail(unit, DocumentError(skip.message))
        alone = list({document: None for document in files.documents})  # one twice is one
        if not together:
            return [self._unit((document,)) for document in alone], bad
        groups, too_large = self._groups(alone)
        for document, error in too_large:
            bad.append(self._unit((document,)))
            self._fail(bad[-1], error)
        return [self._unit(group) for group in groups], bad

    def _groups(
        self, documents: list[Document]
    ) -> tuple[list[tuple[Document, ...]], list[tuple[Document, DocumentTooLarge]]]:
        left, too_large = list(documents), []
        space = Space(max_new_tokens=self.asked.options.get("max_new_tokens"))
        while left:
            try:
                groups = self.llm.plan_groups(left, question=self.asked.questions, **space)
            except DocumentTooLarge as error:
                too_large.append((left.pop(error.index), error))
                continue
            return [group.documents for group in groups], too_large
        return [], too_large

    def _unit(self, documents: tuple[Document, ...]) -> Unit:
        model = self._model
        name = model.identity() if isinstance(model, ModelSpec) else _identity(model)
        keys = {x: key_of(documents, x, self.asked, name) for x in self.asked.questions}
        return Unit(documents, keys)

    def _fail(self, unit: Unit, error: Exception) -> None:
        new = [x for x, key in unit.keys.items() if self._file.get(key) is None]
        self.keep([failed_row(unit, question, error) for question in new])

    def keep(self, rows: Sequence[CorpusRow]) -> None:
        """Write new rows, and report them."""
        if rows:
            self._file.append(rows)
        for row in rows:
            self.computed += 1
            self._report(row, self.computed, self.total)

    def answers(
        self, units: Sequence[Unit], replicas: int, replica_options: Mapping[str, Any]
    ) -> Iterator[list[CorpusRow]]:
        """Yield the rows of units as they are answered, but for those that are there already."""
        open_units = []
        for unit in units:
            keys = {x: key for x, key in unit.keys.items() if self._file.get(key) is None}
            if keys:
                open_units.append(replace(unit, keys=keys))
        if not open_units:
            return
        if replicas:
            if not isinstance(self._model, ModelSpec):
                raise ValueError(
                    "replicas open the model where they run; give a ModelSpec, not a loaded model"
                )
            from selfextend_rag.corpus.replicas import answers_of_replicas

            yield from answers_of_replicas(
                self._model, open_units, self.asked, replicas, replica_options
            )
        elif isinstance(self.llm, RemoteLLM):
            yield from _at_once(self.llm, open_units, self.asked)
        else:
            for unit in open_units:
                yield answer_unit(self.llm, unit, self.asked)


def _at_once(llm: RemoteLLM, units: Sequence[Unit], asked: Asked) -> Iterator[list[CorpusRow]]:
    """Yield rows as a server answers, several units at the same time."""
    most = llm.runner.worker.at_once
    with ThreadPoolExecutor(most, "selfextend-rag-corpus") as pool:
        waiting: set[Future[list[CorpusRow]]] = set()
        try:
            for unit in units:
                waiting.add(pool.submit(answer_unit, llm, unit, asked))
                if len(waiting) >= 2 * most:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            for future in waiting:
                future.cancel()


def _identity(llm: BaseLLM) -> dict[str, object]:
    origin = llm.origin
    context = {} if origin is None else {**origin.loading, **origin.context}
    return {"model": llm.name, "loading": context, "context": {"planner": str(llm.planner)}}


def _unread(source: str) -> Document:
    """Return a document in place of a file that could not be read."""
    return Document(text="(unread)", id=source, title=source, source=source)
