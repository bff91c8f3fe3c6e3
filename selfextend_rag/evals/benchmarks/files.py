"""Records of benchmarks: from a folder in the official layout, or by the library ``datasets``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfextend_rag.evals.benchmarks.items import BenchmarkError

_DEPTHS = ("", "*/", "*/*/")  # a folder of one benchmark, or of several


class Record(dict[str, Any]):
    """A record of a benchmark; what it lacks is an error that says where it is from.

    Args:
        values: what it has.
        where: file and line, or data set and number.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, name: str) -> Any:
        raise BenchmarkError(f"{self.where}: has no {name!r}, only {', '.join(self)}")


@dataclass(frozen=True, slots=True)
class Source:
    """Where records come from.

    Args:
        folder: in the official layout of one benchmark or, in folders of their own, of several.
        hub: id of a data set for ``datasets``, which replaces the benchmark's own.
    """

    folder: Path | None = None
    hub: str | None = None

    @classmethod
    def of(cls, data: str | None) -> Source:
        """Return the source that a user named: a folder, or the id of a data set.

        Raises:
            BenchmarkError: it is neither.
        """
        if data is None:
            return cls()
        if Path(data).is_dir():
            return cls(folder=Path(data))
        if Path(data).exists() or data.count("/") != 1 or data.startswith((".", "/")):
            raise BenchmarkError(f"{data} is no folder of data, and no id of a data set")
        return cls(hub=data)

    def find(self, *patterns: str) -> list[Path]:
        """Return the files that match one of the patterns, at most two folders down, in order."""
        if self.folder is None:
            return []
        found: dict[Path, None] = {}
        for pattern in patterns:
            for deeper in _DEPTHS:
                found.update(dict.fromkeys(sorted(self.folder.glob(deeper + pattern))))
        return list(found)

    def has(self, *patterns: str, hub: str | None = None) -> bool:
        """Return whether there are such files, or a data set and the library to read it by."""
        if self.folder is None:
            return (self.hub or hub) is not None and _has_datasets()
        return bool(self.find(*patterns))

    def records(
        self,
        task: str,
        *patterns: str,
        hub: str | None = None,
        config: str | None = None,
        split: str = "test",
    ) -> Iterator[Record]:
        """Yield the records of the first file that matches, or of the data set.

        Args:
            task: its name, for an error.
            patterns: of files, relative to the official folder.
            hub: id of the benchmark's data set; None if it has none.
            config: the data set's configuration.
            split: the part of the configuration.

        Raises:
            BenchmarkError: there is no such file or data set, or it can't be read.
        """
        if self.folder is not None:
            paths = self.find(*patterns)
            if not paths:
                raise BenchmarkError(
                    f"{task} needs a file {' or '.join(patterns)}, and there is none in "
                    f"{self.folder} or two folders below it"
                )
            yield from read_records(paths[0])
            return
        name = self.hub or hub
        if name is None:
            raise BenchmarkError(f"{task} has no data set; name a folder with its files (--data)")
        yield from _hub_records(task, name, config, split)

    def text(self, name: str) -> str | None:
        """Return a text file of the folder, such as the official prompts; None if it lacks it."""
        paths = self.find(name)
        return paths[0].read_text("utf-8") if paths else None


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file of JSON lines, or of one JSON list, that gzip may compress.

    Raises:
        BenchmarkError: a line or a member of the list is no JSON object; it is named.
    """
    try:
        for where, found in _values(path):
            if not isinstance(found, dict):
                raise BenchmarkError(f"{where}: must be a JSON object")
            yield Record(found, where)
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, BenchmarkError):
            raise
        raise BenchmarkError(f"can't read {path}: {error}") from error


def _values(path: Path) -> Iterator[tuple[str, object]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        if file.read(1) == "[":
            file.seek(0)
            for number, found in enumerate(json.load(file)):
                yield f"{path}, record {number}", found
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}, line {number}", json.loads(line)


def _has_datasets() -> bool:
    try:
        import datasets  # noqa: F401 - only whether it is there
    except ImportError:
        return False
    return True


def _hub_records(task: str, name: str, config: str | None, split: str) -> Iterator[Record]:
    try:
        import datasets
    except ImportError as error:
        raise BenchmarkError(
            f"{task} is read from the data set {name} by the library datasets, which is not "
            "installed; pip install datasets, or name a folder with its files (--data)"
        ) from error
    try:
        for number, record in enumerate(datasets.load_dataset(name, config, split=split)):
            yield Record(record, f"{name}, {config or 'default'}, {split}, record {number}")
    except Exception as error:  # of any library below it, or for want of a network
        raise BenchmarkError(
            f"can't load the data set {name} for {task}: {error}; name a folder with its files "
            "(--data)"
        ) from error
