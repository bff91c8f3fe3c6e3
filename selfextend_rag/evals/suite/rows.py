"""Rows of results, and their file: one line of JSON for each answer, only ever appended to.

What belongs to one document is written at once, and counts when it is all there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from selfextend_rag.corpus.lines import LineFile
from selfextend_rag.evals.benchmarks.items import Task
from selfextend_rag.evals.methods.base import Input

FILE = "rows.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One answer, or why there is none.

    Args:
        task, item, question, method, input: what it answers.
        fingerprint: of model, settings, prompt, gold and package.
        of: how many rows the item has.
        status: ``answered``, ``refused`` where the method can't, ``skipped`` where the benchmark
            leaves the item out.
        scores: by name; empty without an answer.
        groups: what results are broken down by.
        record: of what its item is one variant, if of anything.
        text: the answer.
        gold: what it was scored against.
        reason: why there is no answer.
        finish_reason: why the answer ended.
        prompt_tokens, new_tokens: of the whole prompt, and generated.
        cut_tokens: how many tokens fewer the prompt has by the benchmark's rule.
        settings: what the method chose.
        seconds, read_seconds: of this answer, and of the document that its row shares.
    """

    task: str
    item: str
    question: str
    method: str
    input: str
    fingerprint: str
    of: int
    status: str
    scores: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str | int | float] = field(default_factory=dict)
    record: str = ""
    text: str = ""
    gold: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    new_tokens: int = 0
    cut_tokens: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    read_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Column:
    """What is compared: a method, and the form of its prompts."""

    method: str
    input: Input

    def __str__(self) -> str:
        return self.method if self.input == "whole" else f"{self.method} ({self.input})"


@dataclass(slots=True)
class Results:
    """The rows of one run, by task and column, and how many of them were computed in it."""

    tasks: list[Task]
    columns: list[Column] = field(default_factory=list)
    rows: dict[tuple[str, Column], list[Row]] = field(default_factory=dict)
    computed: int = 0
    found: int = 0

    def add(self, task: Task, column: Column, rows: Sequence[Row]) -> None:
        """Add the rows of one item."""
        if column not in self.columns:
            self.columns.append(column)
        self.rows.setdefault((task.name, column), []).extend(rows)


Key = tuple[str, str, str, str, str]  # task, item, method, input, fingerprint


class RowFile:
    """The rows of a folder, opened by one process at a time; a context manager.

    Args:
        folder: made if it is not there.

    Raises:
        ResultsError: another process has it open, or a line before the last is no row.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._file = LineFile(self.path, "folder (--out)")
        try:
            self._groups = self._read()
        except BaseException:  # raised again
            self._file.close()
            raise

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def get(self, key: Key) -> list[Row] | None:
        """Return the rows of an item, in the order of its questions, if they are all there."""
        return self._groups.get(key)

    def append(self, rows: Sequence[Row]) -> None:
        """Write the rows of one item at once."""
        self._file.append(asdict(row) for row in rows)
        self._groups.update(_groups(rows))

    def _read(self) -> dict[Key, list[Row]]:
        rows = []
        for number, value in self._file.values():
            try:
                rows.append(Row(**value))
            except TypeError as error:
                raise self._file.bad_line(number, error) from error
        return _groups(rows)


def key_of(row: Row) -> Key:
    """Return what tells the rows of one item from those of others."""
    return row.task, row.item, row.method, row.input, row.fingerprint


def _groups(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """Return rows by item, without those of items that are not all there."""
    open_: dict[Key, dict[str, Row]] = {}
    for row in rows:
        open_.setdefault(key_of(row), {})[row.question] = row
    return {
        key: list(found.values())
        for key, found in open_.items()
        if len(found) == next(iter(found.values())).of
    }
