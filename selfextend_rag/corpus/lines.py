"""A file of JSON lines that is only ever appended to, by one process at a time.

A process that is killed leaves at most one line unfinished, which the next one drops.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selfextend_rag.errors import SelfExtendError

try:
    import fcntl
except ImportError:  # on Windows, where nothing keeps two runs from one file
    fcntl = None  # type: ignore[assignment]  # on Windows


class ResultsError(SelfExtendError, ValueError):
    """Results that can't be read, or are being written by another process."""


class LineFile:
    """The lines of a file, opened by one process at a time.

    Args:
        path: made if it is not there, its folder too.
        elsewhere: what a message calls another place, such as ``"folder (--out)"``.

    Raises:
        ResultsError: another process has it open.
    """

    def __init__(self, path: Path, elsewhere: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._elsewhere = elsewhere
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._lock()
        except BaseException:  # raised again
            self.close()
            raise

    def values(self) -> Iterator[tuple[int, Any]]:
        """Yield the lines with their numbers from 1; one that was not finished is removed.

        Raises:
            ResultsError: a line before the last is no JSON.
        """
        with self.path.open("rb") as file:
            data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # of a process that was killed while it wrote
            os.ftruncate(self._file, whole)
        # not by splitlines: JSON may hold what ends a line in Unicode and not here
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            try:
                value = json.loads(line.decode("utf-8", "surrogatepass"))
            except ValueError as error:
                raise self.bad_line(number, error) from error
            yield number, value

    def append(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Write lines at once."""
        lines = "".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values)
        data = memoryview(lines.encode("utf-8", "surrogatepass"))
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Let another process open it."""
        os.close(self._file)

    def bad_line(self, number: int, error: Exception) -> ResultsError:
        """Return the error for a line that is none of this file's."""
        return ResultsError(
            f"{self.path}, line {number}, is no row of results: {error}; name another "
            f"{self._elsewhere}, or remove the line"
        )

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResultsError(
                f"{self.path} is being written by another process; wait for it, or name another "
                f"{self._elsewhere}"
            ) from error
