"""What is known of one answer about one prompt of a corpus, and the file that keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from selfextend_rag.corpus.lines import LineFile

JsonObject = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusRow:
    """An answer, or why there is none.

    Args:
        key: the same for the same documents, question, model and options.
        documents: what was read, in this order: ``id``, ``title`` and ``source`` of each.
        question: what was asked.
        status: ``answered`` or ``failed``.
        text: the answer.
        value: what the answer says as JSON, where a schema was given.
        error: why there is no answer, a sentence.
        kind: the error's name.
        again: it failed for a reason that may be gone: a later run tries it again.
        finish_reason: why the answer ended.
        prompt_tokens, cached_tokens, completion_tokens: of the whole prompt, of those that had
            been read before, and of the answer.
        plan: the settings and the figures that it was read with.
        evidence: the passages that it rests on, if they were asked for.
        seconds: from the reading of the documents to the end of the answer.
    """

    key: str
    documents: Sequence[JsonObject]
    question: str
    status: str
    text: str = ""
    value: Any = None
    error: str = ""
    kind: str = ""
    again: bool = False
    finish_reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    plan: JsonObject = field(default_factory=dict)
    evidence: Sequence[JsonObject] = ()
    seconds: float = 0.0


class CorpusFile:
    """The rows of a file of JSON lines; of several of one key, the last counts. A context manager.

    Args:
        path: the file; made if it is not there.

    Raises:
        ResultsError: another process has it open, or a line is no row.
    """

    def __init__(self, path: Path) -> None:
        self._file = LineFile(path, "file (-o)")
        self._rows: dict[str, CorpusRow] = {}
        try:
            for number, value in self._file.values():
                try:
                    row = CorpusRow(**value)
                except TypeError as error:
                    raise self._file.bad_line(number, error) from error
                self._rows[row.key] = row
        except BaseException:  # raised again
            self._file.close()
            raise

    def __enter__(self) -> CorpusFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[CorpusRow]:
        return iter(self._rows.values())

    def get(self, key: str) -> CorpusRow | None:
        """Return the row of a key; None if there is none, or it is to be tried again."""
        row = self._rows.get(key)
        return None if row is None or row.again else row

    def append(self, rows: Sequence[CorpusRow]) -> None:
        """Write rows at once."""
        self._file.append(asdict(row) for row in rows)
        self._rows.update((row.key, row) for row in rows)
