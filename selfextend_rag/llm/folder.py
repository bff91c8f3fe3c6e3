"""Readings as files of a folder, found again by the documents that they are of."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from selfextend_rag.cache import files
from selfextend_rag.cache.identity import digest
from selfextend_rag.documents import Document
from selfextend_rag.errors import (
    CacheMismatchError,
    CorruptReadingError,
    MemoryBudgetExceeded,
    ReadingFileError,
)
from selfextend_rag.llm import saved

if TYPE_CHECKING:
    from selfextend_rag.llm.llm import LongContextLLM
    from selfextend_rag.llm.reading import Reading

_SUFFIX = ".reading"
_ID = re.compile("[0-9a-f]{16}")
_log = logging.getLogger(__name__)


class DocumentName(NamedTuple):
    """What tells documents apart, without their text."""

    id: str
    title: str
    source: str | None


@dataclass(frozen=True, slots=True)
class KeptReading:
    """What is known of a reading without its keys and texts; ``KeptReadings.documents`` has these.

    Args:
        id: the same for the same documents.
        names: of the documents that were read.
        tokens: of the documents, as they are read.
        nbytes: of its keys and values in memory, or else of its file.
        in_memory: whether it can be asked at once.
        on_disk: whether it is in the folder.
        created: when the documents were read, in seconds since 1970; 0 if the file does not say.
    """

    id: str
    names: tuple[DocumentName, ...]
    tokens: int
    nbytes: int
    in_memory: bool
    on_disk: bool
    created: float


def names_of(documents: Sequence[Document]) -> tuple[DocumentName, ...]:
    """Return the names of documents."""
    return tuple(DocumentName(x.id, x.title, x.source) for x in documents)


def reading_id(documents: Sequence[Document]) -> str:
    """Return 16 hexadecimal digits for documents in an order: their ids, titles, texts and
    pictures."""
    parts: list[Sequence[object]] = [
        (x.id, x.title, x.text, *((p.start, p.digest) for p in x.pictures)) for x in documents
    ]
    return digest(json.dumps(parts))[:16]


class ReadingFolder:
    """Files of readings by one model, those that were used longest ago removed when it is full.

    A file that can't be used or written is reported in the log and done without.

    Args:
        llm: the model; files of another one, or of other settings, are left alone.
        folder: where; made if it is not there.
        max_bytes: what the files may take together, of whichever model.

    Raises:
        ReadingFileError: the folder can't be made.
        ValueError: ``max_bytes`` is not positive.
    """

    def __init__(self, llm: LongContextLLM, folder: str | os.PathLike[str], max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"folder_bytes must be positive, got {max_bytes}")
        self.llm = llm
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        # By path, with time and size of the file: its documents are read for it, which takes long.
        self._listed: dict[Path, tuple[tuple[int, int], KeptReading]] = {}
        files.make_folder(self.folder)

    def load(self, documents: Sequence[Document]) -> Reading | None:
        """Return the reading of documents, or None if there is none that can be used now."""
        path = self._path(reading_id(documents))
        if not path.exists():
            return None
        try:
            reading = self.llm.load(path, documents=documents)
            os.utime(path)
        except MemoryBudgetExceeded:
            raise
        except (CacheMismatchError, ReadingFileError, OSError) as error:
            _log.warning("a kept reading can't be used: %s", error)
            if isinstance(error, CorruptReadingError):
                files.remove(path)
            return None
        return reading

    def save(self, reading: Reading) -> None:
        """Write a reading, unless it alone takes more than the folder may hold."""
        try:
            if reading.saved_bytes > self.max_bytes:
                return
            reading.save(self._path(reading_id(reading.documents)))
            files.remove_oldest(self.folder, _SUFFIX, self.max_bytes)
        except (ReadingFileError, CacheMismatchError, TypeError, OSError) as error:
            _log.warning("a reading was not kept in %s: %s", self.folder, error)

    def remove(self, reading: str) -> bool:
        """Remove the file of a reading, named by its id; return whether there was one."""
        if not _ID.fullmatch(reading):  # a name of anything else is none of a file either
            return False
        path = self._path(reading)
        there = path.exists()
        files.remove(path)
        return there

    def all(self) -> list[KeptReading]:
        """Return the readings of this model, those that were used last first."""
        paths = self.folder.glob(f"{self._model()}-*{_SUFFIX}")
        listed = {}
        for path in sorted(paths, key=files.last_used, reverse=True):
            try:
                state = path.stat()
                mark = state.st_mtime_ns, state.st_size
                known = self._listed.get(path)
                if known is None or known[0] != mark:
                    known = mark, self._described(path, state.st_size)
            except (CacheMismatchError, ReadingFileError, OSError) as error:
                _log.warning("a kept reading can't be used: %s", error)
                continue
            listed[path] = known
        self._listed = listed
        return [reading for _, reading in listed.values()]

    def documents(self, reading: str) -> tuple[Document, ...] | None:
        """Return the documents of a reading, named by its id; None if there is none to be used."""
        if not _ID.fullmatch(reading) or not (path := self._path(reading)).exists():
            return None
        try:
            return saved.documents_in(path, self.llm)[0]
        except (CacheMismatchError, ReadingFileError) as error:
            _log.warning("a kept reading can't be used: %s", error)
            return None

    def _described(self, path: Path, size: int) -> KeptReading:
        documents, tokens, created = saved.documents_in(path, self.llm)
        name, names = reading_id(documents), names_of(documents)
        return KeptReading(name, names, tokens, size, False, True, created)

    def _path(self, reading: str) -> Path:
        return self.folder / f"{self._model()}-{reading}{_SUFFIX}"

    def _model(self) -> str:
        return digest(json.dumps(saved.fingerprint(self.llm), sort_keys=True))[:16]
